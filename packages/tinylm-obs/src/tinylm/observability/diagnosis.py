"""tinylm-obs · where a NaN begins: the first module whose inputs are finite and whose output is not.

It runs the loss once more with a hook on every module; with a finite forward pass it asks the gradients, which turn
NaN from the origin back to the first layer. It does NOT run during training; `watching.Watch.diagnose` calls it.
"""

from collections.abc import Callable
from typing import Any


def origin(model: Any, loss_function: Callable[[], Any]) -> tuple[str, str]:
    """(layer, what is wrong there). ("loss", ...) when every module's output and every gradient is finite."""
    import torch

    found: list[tuple[str, Any]] = []
    order: list[str] = []
    hooks = []
    for name, module in model.named_modules():

        def hook(module: Any, inputs: Any, output: Any, name: str = name) -> None:
            order.append(name)
            x = first_tensor(output)
            if not found and x is not None and not _finite(x) and all(map(_finite, _tensors(inputs))):
                found.append((name or "(model)", module))

        hooks.append(module.register_forward_hook(hook))
    try:
        with torch.enable_grad():
            loss = loss_function()
    finally:
        for handle in hooks:
            handle.remove()
    if found:
        name, module = found[0]
        return name, "its output is not finite, what it was given is" + _weights(module)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters or not loss.requires_grad:
        return "loss", f"the loss is {float(loss.detach())}, every module's output is finite"
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    bad = {
        name.rpartition(".")[0]
        for name, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None and not _finite(gradient)
    }
    last = next((name for name in reversed(order) if name in bad), next(iter(bad), None))
    if last is None:
        return "loss", f"the loss is {float(loss.detach())}, every module's output and gradient is finite"
    return last or "(model)", "its gradient is not finite, those of the layers after it are"


def first_tensor(output: Any) -> Any:
    """The output itself, or the first tensor of a tuple or list; None without one."""
    return next(iter(_tensors(output)), None)


def _tensors(value: Any) -> list[Any]:
    if hasattr(value, "is_floating_point"):
        return [value]
    return [one for part in value for one in _tensors(part)] if isinstance(value, tuple | list) else []


def _finite(x: Any) -> bool:
    return not x.is_floating_point() or bool(x.isfinite().all())


def _weights(module: Any) -> str:
    bad = [(name, int((~p.isfinite()).sum())) for name, p in module.named_parameters() if not _finite(p)]
    return "".join(f"; {count} numbers of its {name} are not finite" for name, count in bad[:1])
