"""Memory that is left: of the machine, of control groups, of a limit."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from experts import limits, memory
from tests.support.commands import ROOT


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


GIB = 2**30


GROUPS: dict[str, tuple[str, dict[str, object], list[int]]] = {
    "a job": (
        "0::/slurm/job",
        {
            "slurm/job/memory.max": 4 * GIB,
            "slurm/job/memory.current": 3 * GIB,
            "slurm/job/memory.stat": f"anon 5\ninactive_file {GIB}",
        },
        [2 * GIB],
    ),
    "its parent": (
        "0::/slurm/job",
        {
            "slurm/job/memory.max": "max",
            "slurm/job/memory.current": GIB,
            "slurm/memory.max": 8 * GIB,
            "slurm/memory.high": 3 * GIB,
            "slurm/memory.current": 2 * GIB,
        },
        [GIB],
    ),
    "a container that sees the host's path": (
        "0::/docker/0af",
        {"memory.max": 2 * GIB, "memory.current": GIB},
        [GIB],
    ),
    "more used than allowed": ("0::/", {"memory.max": GIB, "memory.current": 2 * GIB}, [0]),
    "version 1": (
        "5:cpu:/x\n4:memory:/x",
        {
            "memory/x/memory.limit_in_bytes": 4 * GIB,
            "memory/x/memory.usage_in_bytes": 3 * GIB,
            "memory/x/memory.stat": f"total_inactive_file {GIB}",
            "memory/memory.limit_in_bytes": 9223372036854771712,
            "memory/memory.usage_in_bytes": 0,
        },
        [2 * GIB, 9223372036854771712],
    ),
    "both": (
        "4:memory:/x\n0::/y",
        {"memory/x/memory.limit_in_bytes": 1, "unified/y/memory.max": GIB, "unified/y/memory.current": 0},
        [GIB],
    ),
    "no limit": ("0::/", {"cgroup.procs": 1}, []),
    "nonsense": (
        "nonsense\n::\n0::/../..",
        {"memory.max": "many", "memory.current": -1, "memory.stat": "\n"},
        [],
    ),
}


@pytest.mark.parametrize("case", GROUPS)
def test_memory_left_in_control_groups(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, files, left = GROUPS[case]
    own = tmp_path / "own"
    own.write_text(line)
    monkeypatch.setattr(limits, "_address_space", lambda: iter(()))
    assert list(limits.memory_left(tree(tmp_path / "groups", files), own)) == left
    assert list(limits.memory_left(tmp_path / "none", tmp_path / "none")) == []


def test_free_memory_is_the_least_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU; chunks, and whether a recovery fits beside the whole model, follow it."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(limits, "memory_left", lambda: iter((3000, 2000)))
    assert memory.free_bytes(cpu) == 2000
    assert memory.chunk_size(cpu, 100, 512) == 6
    monkeypatch.setattr(limits, "memory_left", lambda: iter(()))
    assert abs(memory.free_bytes(cpu) - psutil.virtual_memory().available) < GIB


def test_processes_of_a_machine_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_left", lambda: iter((3000,)))
    monkeypatch.setattr(limits, "_sharing", [1])
    assert limits.free_memory() == 3000
    limits.share_machine(4)
    assert limits.free_memory() == 750


def test_a_limit_of_address_space() -> None:
    """ulimit -v, in a process of its own: a limit cannot be raised again."""
    code = "from experts.limits import memory_left; print(min(memory_left()))"
    call = f"ulimit -v {4 * 2**20}; exec {sys.executable} -c '{code}'"
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, cwd=ROOT, check=True)
    assert 2 * GIB < int(done.stdout) < 4 * GIB
