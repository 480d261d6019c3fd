"""Whether a backward pass may write over what the forward saved for it.

Not here: the backwards that ask (gelu.py, loss.py, kernels/cross_entropy.py). Next: gelu.py.
"""

import torch


def graph_is_kept() -> bool:
    """Within a backward: whether it was called with retain_graph=True, so that another one may follow. A compiled one
    cannot ask: what is written in place is the compiler's affair there."""
    if torch.compiler.is_compiling():
        return False
    kept: bool = torch._C._autograd._get_current_graph_task_keep_graph()
    return kept
