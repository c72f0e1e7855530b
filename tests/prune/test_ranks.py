"""`excise prune` in two processes of torchrun, one of which is killed: the rerun ends as one process does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.prune.test_streamed import contents

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", sys.executable)
EXCISE = ("-m", "tests.support.two_ranks", "prune")


def run(
    recipe: Path, out: Path, *launcher: str, options: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Streamed, with nothing known from an earlier run of another folder."""
    known = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "EXCISE_CACHE": f"{out}-cache"}
    command = [*EXCISE, str(recipe), "-o", str(out), "--set", "memory.model=streamed", *options]
    return subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=ROOT,
        env={**os.environ, **known, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_killed_ranks_and_a_rerun(recipe_path: Path, tmp_path: Path) -> None:
    """Each of them once, in the middle of the work."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert run(recipe_path, alone).returncode == 0
    for rank, layers in (("0", "5"), ("1", "2")):
        killed = run(recipe_path, together, *TORCHRUN, KILL=rank, LAYERS=layers)
        assert killed.returncode != 0
        assert f"rank      : {rank} (local_rank: {rank})" in killed.stderr
        assert "Signal 9 (SIGKILL)" in killed.stderr
        assert not (together / "checkpoint").exists()
    assert "excise: rank 1 of 2 has ended, and all stop with it; the same command resumes" in killed.stderr
    again = run(recipe_path, together, *TORCHRUN)
    assert again.returncode == 0, again.stderr
    shutil.rmtree(together / "spill", ignore_errors=True)
    assert contents(together) == contents(alone)


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_ctrl_c_is_told_once(rank: str, recipe_path: Path, tmp_path: Path) -> None:
    """By rank 0, whichever of them is at work, and ends first."""
    stopped = run(recipe_path, tmp_path / "run", *TORCHRUN, KILL=rank, LAYERS="2", CTRL_C="1")
    assert stopped.returncode != 0
    lines = [line for line in stopped.stderr.splitlines() if line.startswith("excise: ")]
    assert lines == ["excise: interrupted; the same command resumes from what was finished"]


COUNTS = ("--refit", "--set", "prune.scope=global", "--set", "prune.counts=refitted")


@pytest.mark.slow
def test_a_refit_in_two_processes(recipe_path: Path, tmp_path: Path) -> None:
    """Plans are dealt out; counts per layer, figures and checkpoint are those of one process."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    one = run(recipe_path, alone, options=COUNTS)
    assert one.returncode == 0, one.stderr
    shared = run(recipe_path, together, *TORCHRUN, options=COUNTS)
    assert shared.returncode == 0, shared.stderr
    assert contents(together) == contents(alone)
