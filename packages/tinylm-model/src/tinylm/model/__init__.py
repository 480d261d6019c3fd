"""tinylm.model: token ids in, logits and loss out; checkpoints; the two lowest decoding rungs.

This file only says which names are public and loads each at first use, so that `tinylm-model --help` needs no torch.
Not here: text (tinylm.tokenizer), optimisers (tinylm.training), sampling (tinylm.inference). Next: config.py,
transformer.py.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinylm.model._errors import ModelError
    from tinylm.model.cache import Cache, KVCache
    from tinylm.model.checkpoint import read_config, read_provenance
    from tinylm.model.config import TransformerConfig
    from tinylm.model.decoding import generate
    from tinylm.model.device import keep_freed_memory, pick_device
    from tinylm.model.initialization import initialize
    from tinylm.model.taps import Taps, logit_lens
    from tinylm.model.transformer import Transformer

_HOME = {
    "ModelError": "_errors",
    "Cache": "cache",
    "KVCache": "cache",
    "read_config": "checkpoint",
    "read_provenance": "checkpoint",
    "TransformerConfig": "config",
    "generate": "decoding",
    "keep_freed_memory": "device",
    "pick_device": "device",
    "initialize": "initialization",
    "Taps": "taps",
    "logit_lens": "taps",
    "Transformer": "transformer",
}

__all__ = [
    "Cache",
    "KVCache",
    "ModelError",
    "Taps",
    "Transformer",
    "TransformerConfig",
    "generate",
    "initialize",
    "keep_freed_memory",
    "logit_lens",
    "pick_device",
    "read_config",
    "read_provenance",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
