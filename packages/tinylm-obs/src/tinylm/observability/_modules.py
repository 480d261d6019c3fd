"""tinylm-obs · a span in torch's profile around every call of a module, under the name the model gives it.

torch's hooks for all modules see calls of modules and not names: those are looked up in the models that exist, again
when a module is met that was not there before. It does NOT time anything: the spans are in the trace. Next:
`_trace.py`.
"""

import gc
from typing import Any

from ._trace import MODULE


class ModuleSpans:
    """Puts spans around module calls from `start` to `stop`."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._open: list[tuple[int, Any]] = []
        self._hooks: list[Any] = []

    def start(self) -> None:
        from torch.nn.modules import module as hooks

        self._learn()
        self._hooks = [
            hooks.register_module_forward_pre_hook(self._before),
            hooks.register_module_forward_hook(self._after, always_call=True),
        ]

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()
        while self._open:
            self._open.pop()[1].__exit__(None, None, None)

    def _before(self, module: Any, inputs: Any) -> None:
        import torch

        if torch.compiler.is_compiling():
            return
        span: Any = torch.profiler.record_function(MODULE + self._name(module))
        span.__enter__()
        self._open.append((id(module), span))

    def _after(self, module: Any, inputs: Any, output: Any) -> None:
        if self._open and self._open[-1][0] == id(module):
            self._open.pop()[1].__exit__(None, None, None)

    def _name(self, module: Any) -> str:
        if id(module) not in self._names:
            self._learn()
        return self._names.get(id(module), type(module).__name__)

    def _learn(self) -> None:
        """The names of the modules of every model there is, each below the largest that holds it."""
        import torch

        found = [one for one in gc.get_objects() if issubclass(type(one), torch.nn.Module)]
        for root in sorted(found, key=lambda module: -sum(1 for _ in module.modules())):
            for name, part in root.named_modules():
                self._names.setdefault(id(part), name or type(root).__name__)
