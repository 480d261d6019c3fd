"""tinylm.inference: the decoding step as one compiled graph, and on a GPU as one CUDA graph.

A step of a small model is a hundred short calls; Python and the launches between them cost more than the numbers.
`torch.compile` makes one call of them and fuses what follows a product; a CUDA graph then replays all launches at once.
Both want every shape fixed: the cache has all its room from the first step on, and a mask says how much of it counts.
Not here: paging (`engine.py`); the batch is that of `static_batch.py`.
"""

import sys
from collections.abc import Callable, Collection
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from tinylm.inference._errors import InferenceError
from tinylm.inference.sampling_params import SamplingParams
from tinylm.inference.static_batch import Texts, pad_left, room_for_each, write
from tinylm.model import Transformer, TransformerConfig
from tinylm.model.attention import attend


class FixedCache:
    """A `tinylm.model.Cache` whose shapes never change: (batch, kv_heads, room, head_dim) for each layer.

    A tensor for each layer, since a compiler copies the whole of a tensor of which a part is written. `place` (T,):
    where the step's tokens stand; `first` (batch, 1, 1, 1): where each row's text begins, padding before.
    """

    def __init__(self, config: TransformerConfig, batch: int, room: int, device: torch.device, dtype: torch.dtype):
        shape = (batch, config.kv_heads, room, config.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.depth)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.depth)]
        self.columns = torch.arange(room, device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.first = torch.zeros(batch, 1, 1, 1, dtype=torch.int64, device=device)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, window: int | None = None
    ) -> Tensor:
        """q (batch, heads, T, head_dim), k and v (batch, kv_heads, T, head_dim). Returns q's shape."""
        if mask is not None:
            raise InferenceError("FixedCache takes no mask: it knows where each row begins")
        place = self.place[:, None]
        self.keys[layer].index_copy_(2, self.place, k)
        self.values[layer].index_copy_(2, self.place, v)
        seen = (self.columns <= place) & (self.columns >= self.first)
        if window is not None:
            seen = seen & (self.columns > place - window)
        seen = seen | (self.columns == place)  # padding sees itself: a softmax over nothing would be no number
        return attend(q, self.keys[layer], self.values[layer], seen)

    def positions(self) -> Tensor:
        """(batch, T)."""
        return (self.place - self.first[:, :, 0, 0]).clamp(min=0)


class Compiled:
    """Writes `batch` texts at a time, prompt and answer together at most `room` tokens. Compiles when it is made.

    Where torch.compile fails (on a CPU it needs a C++ compiler) one line on stderr says so, and the step runs as it is.
    """

    def __init__(self, model: Transformer, batch: int, room: int) -> None:
        if not 1 <= room <= model.config.context or batch < 1:
            raise InferenceError(
                f"wanted at least one text and room for 1 to {model.config.context} tokens, got {batch} and {room}"
            )
        weight = model.embed.weight
        self.model, self.batch, self.room = model, batch, room
        self.cache = FixedCache(model.config, batch, room, weight.device, weight.dtype)
        self._ids = torch.zeros(batch, 1, dtype=torch.int64, device=weight.device)
        with torch.inference_mode():
            self._step = self._compile()
            if weight.device.type == "cuda":
                self._step = self._capture(self._step)

    @torch.inference_mode()
    def write(self, prompts: Items[Items[int]], params: Items[SamplingParams], ends: Collection[int] = ()) -> Texts:
        """As `static_batch`, the same tokens."""
        limits = room_for_each(self.model.config, prompts, params)
        ids, mask = pad_left(prompts, self._ids.device)
        if len(prompts) != self.batch or ids.shape[1] + max(limits) > self.room:
            raise InferenceError(
                f"this graph is for {self.batch} texts of at most {self.room} tokens, got {len(prompts)} of up to "
                f"{ids.shape[1] + max(limits)}: make another"
            )
        self.cache.place = torch.arange(ids.shape[1], device=ids.device)
        self.cache.first.copy_((~mask).sum(dim=1).view(-1, 1, 1, 1))
        begun = False

        def step(new: Tensor) -> Tensor:
            nonlocal begun
            if not begun:  # the prompt, in a shape that comes once
                begun, logits = True, self._logits(new)
                self.cache.place = self._place.fill_(ids.shape[1])
                return logits
            self._ids.copy_(new)
            logits = self._step()
            self._place.add_(1)
            return logits

        return write(step, ids, prompts, params, limits, ends)

    def _logits(self, ids: Tensor) -> Tensor:
        """(batch, T) -> (batch, V), after the last."""
        logits: Tensor = self.model(ids, self.cache.positions(), cache=self.cache, logits_at=[-1])[:, 0]
        return logits

    def _compile(self) -> Callable[[], Tensor]:
        """The step from self._ids at self._place, compiled if it can be."""
        self._place = self.cache.place
        try:
            compiled = torch.compile(self._logits, dynamic=False)
            compiled(self._ids)
        except Exception as error:  # it fails in many ways, and none of them is the model's: the plain step follows
            reason = str(error).strip().partition("\n")[0][:120]
            print(f"torch.compile failed ({reason}): decoding without it", file=sys.stderr)
            return lambda: self._logits(self._ids)
        return lambda: compiled(self._ids)

    def _capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The launches of `step`, recorded once. It reads and writes the same memory at every replay."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # libraries set themselves up outside the recording
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = step()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
