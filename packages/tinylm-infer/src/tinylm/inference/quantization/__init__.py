"""Weights of 8 and 4 bits: smaller and faster, nearly as good. `quantize(model, "int8")` is all there is to call.

Read `weights.py` (rounding), then `reference.py` (what is computed, in PyTorch), `packing.py` and `linear.py` (the C++
rung), `decoder.py` and `model.py` (a whole model), `files.py` and `gguf.py` (on disk).
"""

from tinylm.inference.quantization.files import save_quantized
from tinylm.inference.quantization.model import SCHEMES, QuantizedTransformer, place, quantize

__all__ = ["SCHEMES", "QuantizedTransformer", "place", "quantize", "save_quantized"]
