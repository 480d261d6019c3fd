"""keep_freed_memory: what a process asks glibc for, in a process of its own."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc alone")

CHILD = """
import json, resource, sys, threading
from pathlib import Path
import torch
from tinylm.model import keep_freed_memory

def pages():
    size, resident = Path("/proc/self/statm").read_text().split()[:2]
    return {"size": int(size) * resource.getpagesize(), "resident": int(resident) * resource.getpagesize()}

if "limited" in sys.argv:
    resource.setrlimit(resource.RLIMIT_AS, (pages()["size"] + (1 << 30), resource.RLIM_INFINITY))
before = pages()
for _ in range(2):
    keep_freed_memory()
asked = pages()
block = torch.ones(1 << 24)  # 64 MB
del block
after = pages()
thread = threading.Thread(target=lambda: torch.ones(1 << 22))  # 16 MB
thread.start()
thread.join()
print(json.dumps({"before": before, "asked": asked, "after": after, "thread": pages()}))
"""


def child(*words):
    command = [sys.executable, "-c", CHILD, *words]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_what_is_freed_stays_and_nothing_is_taken_before():
    found = child()
    assert found["asked"]["resident"] - found["before"]["resident"] < 8 << 20
    assert found["after"]["resident"] - found["asked"]["resident"] > 60 << 20


def test_under_a_limit_no_address_space_is_taken():
    found = child("limited")
    assert found["asked"]["size"] - found["before"]["size"] < 8 << 20
    assert found["after"]["resident"] - found["asked"]["resident"] > 60 << 20


def test_a_thread_gets_what_another_has_freed():
    found = child()
    assert found["thread"]["resident"] - found["after"]["resident"] < 8 << 20
