"""Several processes compute what one does; a killed one ends all, with its number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experts.errors import ExciseError
from experts.ranks import Ranks
from experts.team import Together, blocks, deal, undeal
from tests.support import tiny

ROOT = Path(__file__).resolve().parents[2]


def started(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script of `tests/support/together.py` in two processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    script = [sys.executable, "-m", "tests.support.together", *arguments]
    return subprocess.run(
        [*torchrun, *script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["resident", "streamed"])
def test_two_processes_compute_what_one_does(mode: str, tmp_path: Path) -> None:
    """Losses and effects bit by bit, statistics and gradients to 1e-12."""
    model = tiny.save(tiny.build("olmoe"), tmp_path / "model")
    more = ["streamed"] if mode == "streamed" else []
    done = started(tmp_path, str(model), str(tmp_path / "gaps.json"), *more)
    assert done.returncode == 0, done.stderr
    gaps = json.loads((tmp_path / "gaps.json").read_text())
    summed = {"statistics", "gradient", "fisher", "integrated:steps=2"}
    assert set(gaps) > summed
    assert {name: gap for name, gap in gaps.items() if name not in summed and gap != -1.0} == {}
    assert all(gaps[name] <= 1e-12 for name in summed)


@pytest.mark.slow
def test_a_killed_process_ends_all(tmp_path: Path) -> None:
    """With its rank and its signal, and nothing is written."""
    model = tiny.save(tiny.build("olmoe"), tmp_path / "model")
    done = started(tmp_path, str(model), str(tmp_path / "gaps.json"), KILL="1")
    assert done.returncode != 0
    assert "rank      : 1 (local_rank: 1)" in done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert not (tmp_path / "gaps.json").exists()


class OneFails(Ranks):
    """Two ranks in one process, the other of which ran out of memory."""

    def hand_out(self, tasks: list[object] | None) -> object:
        assert tasks is not None
        self.busy, self.other = True, tasks[1]
        return tasks[0]

    def collect(self, result: object) -> list[object]:
        from experts.team import _Failure

        return [result, _Failure("CUDA out of memory")]


def test_a_rank_that_fails_is_named() -> None:
    anatomy = tiny_anatomy()
    team = Together(OneFails(0, 2), lambda: anatomy)
    with pytest.raises(ExciseError, match="rank 1 of 2: CUDA out of memory"):
        team.map(anatomy, lambda _, number: number, [(1,), (2,)])


def tiny_anatomy():  # type: ignore[no-untyped-def]
    from experts.anatomy import dissect

    return dissect(tiny.build("olmoe"))


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_what_is_dealt_is_found_again(count: int, size: int) -> None:
    items = list(range(count))
    hands = deal(items, size)
    assert undeal(hands) == items
    assert len(hands) == min(size, count)
    for block in (1, 2, 4):
        ranges = blocks(count, block, size)
        assert [place for start, stop in ranges for place in range(start, stop)] == items
        assert len(ranges) <= size
        assert all(start % block == 0 for start, _ in ranges)
