"""Ids on their way to a CUDA device and back. Runs from a plain checkout; without a device it skips by name."""

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tinylm.tokenizer import Tokenizer  # noqa: E402  (after the check that torch is there

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is false"),
]


def test_array_to_pinned_to_device_and_back(tok: Tokenizer, mixed: str) -> None:
    ids = tok.encode_array(mixed * 200)
    pinned = torch.from_numpy(ids.astype(np.int64)).pin_memory()
    assert pinned.is_pinned()
    there = pinned.to("cuda", non_blocking=True)
    back = there.to("cpu")
    torch.cuda.synchronize()
    assert there.device.type == "cuda"
    assert np.array_equal(back.numpy(), ids)
    assert tok.decode(back.numpy()) == mixed * 200


def test_batch_threads_while_a_kernel_runs(tok: Tokenizer, corpus: list[str]) -> None:
    texts = [line for text in corpus for line in text.splitlines(keepends=True)]
    expected = [tok.encode(text) for text in texts]
    matrix = torch.randn(2048, 2048, device="cuda") / 2048**0.5
    wanted = matrix.clone()
    for _ in range(50):
        wanted = wanted @ matrix
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    done = threading.Event()
    results: list[list[list[int]]] = []

    def encode_until_done() -> None:
        while not done.is_set() or not results:
            results.append(tok.encode_batch(texts, threads=4))

    thread = threading.Thread(target=encode_until_done)
    with torch.cuda.stream(stream):
        product = matrix.clone()
        thread.start()
        for _ in range(50):
            product = product @ matrix
    stream.synchronize()
    done.set()
    thread.join()
    assert all(result == expected for result in results)
    torch.testing.assert_close(product, wanted)


def test_embedding_lookup_on_the_device_equals_the_cpu(tok: Tokenizer, mixed: str) -> None:
    ids = torch.from_numpy(tok.encode_array(mixed).astype(np.int64))
    table = torch.randn(tok.vocab_size, 64, generator=torch.Generator().manual_seed(0))
    here = torch.nn.functional.embedding(ids, table)
    there = torch.nn.functional.embedding(ids.cuda(), table.cuda())
    assert torch.equal(there.cpu(), here)


def test_ids_of_the_device_decode_and_stream(tok: Tokenizer, mixed: str) -> None:
    """A model's output comes as a CUDA tensor: decode takes it, one by one or as a whole."""
    ids = torch.tensor(tok.encode(mixed), device="cuda")
    assert tok.decode(ids) == mixed
    decoder = tok.stream_decoder()
    assert "".join(decoder.push(int(id)) for id in ids) + decoder.finish() == mixed
