"""Files past the page cache: safetensors reads them, their checksum is theirs, and what is refused comes out."""

from __future__ import annotations

import errno
import hashlib
import io
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tinylm.training import _direct
from tinylm.training._direct import copy_file, piece_of_memory, write_all
from tinylm.training._tensor_file import write_tensors

SIZES = [0, 1, 511, 4096, 4097, (1 << 20) - 1, 1 << 20, (1 << 20) + 4096, 3_000_001]


def tensors(numbers: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {
        "long": torch.randn(numbers),
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "turned": torch.arange(12.0).view(3, 4).T,
        "one": torch.tensor(7.5, dtype=torch.float64),
        "none": torch.empty(0, 4),
        "name with ü": torch.arange(5),
    }
    return made | {str(kind): torch.ones(3).to(kind) for kind in (torch.float16, torch.int32, torch.uint8, torch.bool)}


@pytest.fixture(params=["past the cache", "through it"])
def way(request, monkeypatch):
    if request.param == "through it":
        monkeypatch.setattr(_direct, "_DIRECT", 0)


@pytest.mark.parametrize("numbers", [1, 300_000])
def test_safetensors_reads_what_was_written(way, tmp_path, numbers):
    path, wanted = tmp_path / "a.safetensors", tensors(numbers)
    digest = write_tensors(wanted, path, {"format": "pt"})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    found = load_file(path)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    again = tmp_path / "b.safetensors"
    assert write_tensors(dict(reversed(wanted.items())), again, {"format": "pt"}) == digest  # a fixed order
    shorter = write_tensors({"x": torch.ones(2)}, path)  # nothing of the longer file is left
    assert shorter == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(load_file(path)) == ["x"]


@pytest.mark.parametrize("size", SIZES)
def test_a_copy_is_the_same(way, tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content


def test_without_the_system_s_way_past_the_cache_it_goes_through_it(tmp_path, monkeypatch):
    """A file system that knows no O_DIRECT refuses it when the file is opened, or only when it is written."""
    plain = os.open

    def refusing(path, flags, mode=0o777):
        if flags & _direct._DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return plain(path, flags, mode)

    monkeypatch.setattr(os, "open", refusing)
    digest = write_tensors(tensors(300_000), tmp_path / "a")
    assert digest == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


@pytest.mark.skipif(not _direct._DIRECT, reason="a system without O_DIRECT")
def test_what_the_device_does_not_take_goes_through_the_cache(tmp_path):
    fcntl = pytest.importorskip("fcntl")

    class Refusing(io.FileIO):
        refused = 0

        def write(self, content):
            if fcntl.fcntl(self, fcntl.F_GETFL) & _direct._DIRECT:
                self.refused += 1
                raise OSError(errno.EINVAL, "Invalid argument")
            return super().write(content[:3])

    with Refusing(os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT | _direct._DIRECT), "wb") as file:
        write_all(file, memoryview(b"hello there"))
        write_all(file, memoryview(b", again"))
        assert file.refused == 1
    assert (tmp_path / "a").read_bytes() == b"hello there, again"


def test_any_other_refusal_comes_out(tmp_path):
    class Full(io.FileIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    with Full(tmp_path / "a", "wb") as file, pytest.raises(OSError, match="No space left"):
        write_all(file, piece_of_memory())
