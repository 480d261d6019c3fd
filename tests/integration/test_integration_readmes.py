"""The five READMEs: one shape, and what they print as "Ten lines of use" runs as it stands, one after the other.

Names go from one README into the next: `my-tokenizer` is made in the tokenizer's, read in the trainer's, whose
`my-model` inference opens. Only the length of training is cut. Commands that stay open until Ctrl-C are left out here.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[2] / "packages"
ORDER = ["tokenizer", "model", "train", "infer", "obs"]
SHAPE = ["Install", "Ten lines of use", "Ladders", "Peers", "Limits", "In detail"]
STAYS_OPEN = ("tinylm-infer chat", "tinylm-infer serve", "tinylm-infer explore", "tinylm-obs ui")
SHORTER = {
    "--depth 4 --minutes 3": "--depth 1 --steps 3 --context 256 --batch-size 2",
    "depth=4, steps=500": "depth=1, steps=3, context=256, batch_size=2",
    "--out tuned": "--out tuned --steps 2",
    "bench my-model": "bench my-model --prompt-tokens 4 --max-tokens 4",
    "ladder logging": "ladder logging --repeats 1",
}
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections(name: str) -> dict[str, str]:
    """Heading -> text of a package's README."""
    text = (PACKAGES / f"tinylm-{name}" / "README.md").read_text(encoding="utf-8")
    code = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    starts = [m.start() for m in re.finditer(r"^## ", code.sub(lambda m: " " * len(m[0]), text), re.MULTILINE)]
    parts = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    return {part[3:].partition("\n")[0]: part.partition("\n")[2] for part in parts}


@pytest.mark.parametrize("name", ORDER)
def test_the_readmes_are_alike_in_shape(name: str) -> None:
    assert list(sections(name)) == SHAPE
    assert "<!-- table: " in sections(name)["Ladders"]
    assert "<!-- table: " in sections(name)["Peers"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, text) -> Path:
    folder = tmp_path_factory.mktemp("readmes")
    (folder / "book.txt").write_text(text(0, 9000), encoding="utf-8")
    messages = '{"messages": [{"role": "user", "content": "hum"}, {"role": "assistant", "content": "ba ba"}]}\n'
    (folder / "chat.jsonl").write_text(messages * 8, encoding="utf-8")
    bin = folder / "bin"  # the five commands by name, also where nothing is installed
    bin.mkdir()
    modules = {"train": "training", "infer": "inference", "obs": "observability"}
    for name in ORDER:
        command = bin / f"tinylm-{name}"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tinylm.{modules.get(name, name)} "$@"\n')
        command.chmod(0o755)
    return folder


@pytest.mark.skipif(shutil.which("bash") is None, reason="the blocks are lines for bash, and there is none here")
def test_ten_lines_of_use_run_as_they_are_printed(folder: Path) -> None:
    environment = os.environ | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for name in ORDER:
        for language, code in BLOCK.findall(sections(name)["Ten lines of use"]):
            for printed, shorter in SHORTER.items():
                code = code.replace(printed, shorter)
            if language == "python":
                command = [sys.executable, "-c", code]
            else:
                lines = [line for line in code.splitlines() if not line.startswith(STAYS_OPEN)]
                command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
            assert done.returncode == 0, f"{name}:\n{code}\n{done.stdout}\n{done.stderr}"
