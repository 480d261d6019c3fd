"""`quantize`: a Transformer whose matrices are of 8 or 4 bits.

Every projection of attention and MLP, and the head, becomes a `QuantizedLinear`; norms, biases and the embedding (of
which a token reads one row) stay float32, and so do the activations between the matrices and the KV cache. With int4
the head has 8 bits: it decides between neighbouring tokens, and llama.cpp keeps it finer too. Not here: rounding
(weights.py), files (files.py). Next: weights.py.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.inference import kernels
from tinylm.inference._errors import InferenceError
from tinylm.inference.decoder import CompiledTransformer, Decoder, rows_at
from tinylm.inference.quantization import packing
from tinylm.inference.quantization.linear import QuantizedLinear
from tinylm.inference.quantization.weights import QuantizedWeight, round_weight
from tinylm.model import Cache, Transformer
from tinylm.model.initialization import uninitialized

SCHEMES = {"int8": 8, "int4": 4}


class QuantizedTransformer(CompiledTransformer):
    """What `quantize` returns: a Transformer to everything that calls one, for inference on a CPU.

    `scheme` is "int8", "int4", or "gguf" (gguf.py). No gradients; `head_weight` is rebuilt in float32 at each access.
    """

    def __init__(self, model: Transformer, scheme: str, weights: dict[str, QuantizedWeight]) -> None:
        """weights: by module name, in order of use; "head" is the head, tied to the embedding or not."""
        with uninitialized():
            super().__init__(model.config)
        self.scheme = scheme
        sizes = [packing.packed_bytes(weight) for weight in weights.values()] if kernels.available() else []
        memory = packing.allocate(sizes) if sizes else [None] * len(weights)
        linears = {}
        for (name, weight), place in zip(weights.items(), memory, strict=True):
            source = None if name == "head" else model.get_submodule(name)
            bias = source.bias if isinstance(source, nn.Linear) else None
            linears[name] = QuantizedLinear(weight, bias, place)
        for name, module in model.named_modules():
            if not isinstance(module, nn.Linear) and next(module.parameters(recurse=False), None) is not None:
                _put(self, name, _in_float32(module))
        for name, linear in linears.items():
            if name != "head":
                _put(self, name, linear)
        self.head = None
        self.quantized_head = linears["head"]
        self.requires_grad_(False)
        self.eval()
        if kernels.available():
            self._decoder = Decoder(self, lambda linear: linear.matrix, self.quantized_head.matrix)

    @property
    def head_weight(self) -> Tensor:
        """(V, D) float32: the head's matrix as its 8 bits give it."""
        return self.quantized_head.weight().dequantize()

    def forward_in_torch(
        self,
        ids: Tensor,
        positions: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
        taps: dict[str, Tensor] | None,
        logits_at: Sequence[int] | Tensor | None,
    ) -> Tensor:
        """As `Transformer.forward`, with the same matrices one by one."""
        hidden = self.hidden(ids, positions, mask, cache, taps)
        if logits_at is not None:
            hidden = rows_at(hidden, logits_at)
        logits: Tensor = self.quantized_head(hidden)
        if taps is not None:
            taps["logits"] = logits
        return logits

    def loss(
        self, ids: Tensor, targets: Tensor, reduction: str = "mean", items: dict[str, Tensor] | None = None
    ) -> Tensor:
        """As `Transformer.loss`, without gradients."""
        pairs = zip(ids, targets, strict=True)  # one sequence's logits at a time
        each = torch.stack([F.cross_entropy(self(row[None])[0], wanted, reduction="none") for row, wanted in pairs])
        counted = (targets != -100).sum()
        loss = {"none": each, "sum": each.sum(), "mean": each.sum() / counted}[reduction]
        if items is not None:
            items["cross_entropy"] = loss
        return loss

    def weight_of(self, name: str) -> QuantizedWeight | None:
        """The numbers and scales of a projection by its module's name; None for what is no projection."""
        try:
            module = self.get_submodule(name)
        except AttributeError:
            return None
        return module.weight() if isinstance(module, QuantizedLinear) else None

    def save(self, *_: object, **__: object) -> None:
        raise InferenceError(
            "a quantised model is saved from its checkpoint: quantization.save_quantized(source, directory, scheme)"
        )


def quantize(model: Transformer, scheme: str) -> QuantizedTransformer:
    """`model` with its matrices rounded to "int8" or "int4"; the given one is left as it is.

    InferenceError for another scheme, for a model that is not on the CPU, and for one with experts.
    """
    check_scheme(scheme)
    if isinstance(model, QuantizedTransformer):
        if model.scheme == scheme:
            return model
        raise InferenceError(f"quantization {scheme!r}: this model is {model.scheme} already; leave quantization out")
    if model.embed.weight.device.type != "cpu":
        raise InferenceError(
            f"quantization {scheme!r} runs on the CPU, got a model on {model.embed.weight.device}; use device='cpu'"
        )
    if model.config.experts:
        raise InferenceError(f"quantization {scheme!r} does not carry experts; load this model without it")
    bits = SCHEMES[scheme]
    with torch.inference_mode():
        weights = {
            name: round_weight(module.weight, bits)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not model.head
        }
        weights["head"] = round_weight(model.head_weight, 8)
        return QuantizedTransformer(model, scheme, weights)


def place(scheme: str | None, dtype: str | torch.dtype, device: str) -> tuple[str | torch.dtype, str]:
    """The dtype and device to load a model with: as given, or what `scheme` needs, float32 on the CPU.

    InferenceError for what is no scheme, and for another dtype or device than it needs.
    """
    if scheme is None:
        return dtype, device
    check_scheme(scheme)
    if dtype not in ("auto", "float32", "float", torch.float32):
        raise InferenceError(f"quantization {scheme!r} computes in float32 between its matrices, got dtype {dtype!r}")
    if device not in ("auto", "cpu"):
        raise InferenceError(f"quantization {scheme!r} runs on the CPU, got device {device!r}")
    return "float32", "cpu"


def check_scheme(scheme: str) -> None:
    """InferenceError for what is no scheme."""
    if scheme not in SCHEMES:
        raise InferenceError(f"quantization: wanted one of {', '.join(SCHEMES)}, got {scheme!r}")


def _in_float32(module: nn.Module) -> nn.Module:
    """The module with parameters in float32, those of the given one where they are that already."""
    shared = copy.copy(module)
    shared._parameters = {
        name: None if parameter is None else nn.Parameter(parameter.detach().float(), requires_grad=False)
        for name, parameter in module._parameters.items()
    }
    return shared


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
