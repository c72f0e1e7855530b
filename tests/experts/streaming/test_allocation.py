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


@pytest.mark.parametrize(
    ("calls", "said", "expected"),
    [
        ("give_back_freed()", None, "16"),
        ("give_back_freed()", "7", "7"),
        ("keep_products()", None, "4096"),
        ("allocation.free_memory = lambda: 16 * 10**9; keep_products()", None, "3000"),
        ("allocation.free_memory = lambda: 4 * 10**9; keep_products()", None, "None"),
        ("keep_products()", "7", "7"),
        ("keep_products(); give_back_freed()", None, "16"),
        ("keep_products(); give_back_freed()", "7", "7"),
    ],
)
def test_products_are_many_or_few_unless_the_user_says_otherwise(
    calls: str, said: str | None, expected: str
) -> None:
    shown = f"import os; print(os.environ.get({PRODUCTS_VARIABLE!r}))"
    much = "from experts.streaming import allocation; allocation.free_memory = lambda: 10**12"
    program = f"{much}; from experts.streaming.allocation import *; {calls}; {shown}"
    others = {name: value for name, value in os.environ.items() if name != PRODUCTS_VARIABLE}
    environment = others if said is None else others | {PRODUCTS_VARIABLE: said}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
