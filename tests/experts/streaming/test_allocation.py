"""Freed memory goes back to the system, in a process of its own: the setting is the whole process's."""

import os
import subprocess
import sys

import pytest

from experts.streaming.allocation import HEAP, PRODUCTS_VARIABLE

# The second block of 20 MB lies in the heap by default, below a small one that stays.
FREED = """
import ctypes, sys
from pathlib import Path
from experts.streaming.allocation import give_back_freed

def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024

if sys.argv[1] == "back":
    give_back_freed()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.malloc.argtypes = [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
c.free(c.malloc(20_000_000))
block, above = c.malloc(20_000_000), c.malloc(100_000)
ctypes.memset(block, 1, 20_000_000)
before = resident()
c.free(block)
print(before - resident())
"""


def freed(mode: str, **environment: str) -> int:
    """Bytes that go back to the system when 20 MB are freed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FREED, mode]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_blocks_go_back() -> None:
    assert freed("back") > 15_000_000


def test_glibc_keeps_them_otherwise() -> None:
    """Else the test above proves nothing."""
    assert freed("kept") < 5_000_000


@pytest.mark.parametrize("variable", [HEAP[0][1]])
def test_the_users_setting_stays(variable: str) -> None:
    assert freed("back", **{variable: "33554432"}) < 5_000_000


def test_products_are_few_unless_the_user_says_otherwise() -> None:
    shown = f"import os; print(os.environ[{PRODUCTS_VARIABLE!r}])"
    program = f"from experts.streaming.allocation import give_back_freed; give_back_freed(); {shown}"
    for said, expected in (({}, "16"), ({PRODUCTS_VARIABLE: "7"}, "7")):
        others = {name: value for name, value in os.environ.items() if name != PRODUCTS_VARIABLE}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=others | said, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
