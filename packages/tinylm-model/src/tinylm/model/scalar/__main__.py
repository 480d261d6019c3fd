"""`python -m tinylm.model.scalar`: a few thousand parameters learn made-up names, in Python floats.

First a few steps with autograd (gpt.py) beside the same steps with gradients by hand (derived.py): the losses agree.
Then the faster one trains on and makes up names. Not here: anything to learn from; see training.py.
"""

import random
import time

from tinylm.model.scalar import derived, gpt, training
from tinylm.model.scalar.training import CONFIG


def main(beside: int = 20, steps: int = 1000) -> None:
    """`beside` steps with both rungs, then `steps` with the faster one."""
    names = training.made_names(1000)
    print(f"{len(names)} names: {', '.join(names[:5])}, ...; {CONFIG.parameter_count():,} parameters")
    losses, costs = [], []
    for kind in (gpt.GPT, derived.GPT):
        began = time.process_time()
        losses.append(training.train(kind(CONFIG, training.start(CONFIG)), names, beside))
        costs.append(1000 * (time.process_time() - began) / beside)
    print("\nstep   loss by autograd   loss by hand")
    for step, (one, other) in enumerate(zip(*losses, strict=True), 1):
        print(f"{step:4}   {one:.12f}     {other:.12f}")
    print(f"\nCPU-ms a step: autograd {costs[0]:.0f}, by hand {costs[1]:.1f}")

    model, chance = derived.GPT(CONFIG, training.start(CONFIG)), random.Random(0)
    curve = training.train(model, names, steps)
    print(f"\nBy hand, {steps} steps, mean loss of each tenth in nats a letter:")
    tenth = steps // 10
    print("  ".join(f"{sum(curve[at : at + tenth]) / tenth:.2f}" for at in range(0, steps, tenth)))
    print(f"\nNew names: {', '.join(training.sample(model, chance) for _ in range(12))}")


if __name__ == "__main__":
    main()
