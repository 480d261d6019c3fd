"""`plan`'s memory beside what torch's allocator hands out in a real training step on the CPU.

    python packages/tinylm-model/benchmarks/plan_memory.py [--json FILE] [--quick]

A step is forward, backward and fused AdamW, the second of two, so that the optimiser's state is there. torch.profiler
records every allocation and release; their running sum, over what lives before the step (weights and AdamW's state),
has a peak. It does NOT see what oneDNN takes past torch's
allocator, nor a GPU. tests/model/test_model_plan.py runs a few of these shapes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from tinylm.model import Transformer, TransformerConfig
from tinylm.model.plan import training_memory
from tinylm.observability.tables import cells, new_table, write_table

SHAPES = [("gpt2", {}), ("llama", {}), ("qwen3", {"kv_heads": 1}), ("qwen3-moe", {"mlp_width": 160})]


def measured(config: TransformerConfig, batch: int, dtype: str, checkpointing: bool) -> int:
    """Bytes at the peak of a training step of `batch` sequences of the whole context."""
    torch.manual_seed(0)
    model = Transformer(config)
    model.activation_checkpointing = checkpointing
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, config.vocab_size, (batch, config.context))

    def step() -> None:
        context = contextlib.nullcontext() if dtype == "float32" else torch.autocast("cpu", getattr(torch, dtype))
        with context:
            loss = model.loss(ids, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = recorded.profiler.kineto_results.events()  # the only place where each allocation stands by itself
    live = peak = 0
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        live += size
        peak = max(peak, live)
    return 3 * 4 * config.parameter_count() + peak


def main() -> None:
    parser = argparse.ArgumentParser(description="The planned memory of a training step beside the measured.")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--quick", action="store_true", help="the smallest shapes only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for preset, fields in SHAPES:
        for depth, batch in [(2, 4)] if options.quick else [(2, 6), (4, 4), (6, 2)]:
            for dtype in ("float32", "bfloat16"):
                for checkpointing in (False, True):
                    config = TransformerConfig.preset(preset, 2048, depth, width=128, **fields, context=128)
                    got = measured(config, batch, dtype, checkpointing)
                    plan = training_memory(config, batch * config.context, dtype, checkpointing)["peak"]
                    name = f"{preset}, {depth} × {config.width}, {config.heads}/{config.kv_heads} heads"
                    kept = "blocks' inputs" if checkpointing else "all"
                    rows.append([name, batch * 128, dtype, kept, got / 1e6, plan / 1e6, plan / got])
                    print(*rows[-1], flush=True)
    columns = ["shape", "tokens", "products in", "kept", "measured MB", "planned MB", "planned / measured"]
    table = new_table(
        "Peak memory of a training step", "python packages/tinylm-model/benchmarks/plan_memory.py", columns, rows
    )
    for line in [table["columns"], *cells(table)]:
        print("  ".join(text.ljust(34 if index == 0 else 14) for index, text in enumerate(line)))
    if options.json is not None:
        write_table(table, options.json)


if __name__ == "__main__":
    main()
