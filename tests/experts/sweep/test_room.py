"""Branches that do not fit wait for another pass over the layers; no number depends on it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from experts.anatomy import Anatomy, dissect
from experts.errors import ExciseError
from experts.room import Room
from experts.sweep import need as need_module
from experts.sweep.streams import Streams
from tests.support import tiny
from tests.support.one_by_one import one_by_one, visits
from tests.support.sweeps import JOBS, LENGTH, leave_one_out, statistics

WINDOW = LENGTH * 32 * 4  # bytes of the states of one window of a tiny model
jobs = pytest.mark.parametrize("job", JOBS)


@pytest.fixture(scope="module")
def model() -> Anatomy:
    return dissect(tiny.build("olmoe"))


@jobs
def test_numbers_do_not_depend_on_room(job: str, model: Anatomy, tmp_path: Path) -> None:
    layered = one_by_one(model, Room(8 * WINDOW, tmp_path))
    assert np.array_equal(JOBS[job](layered), JOBS[job](model), equal_nan=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@jobs
@pytest.mark.parametrize(
    ("memory", "spills"), [(1, True), (1, False), (5 * WINDOW, True), (5 * WINDOW, False)]
)
def test_nor_on_how_little_there_is(job: str, memory: int, spills: bool, tmp_path: Path) -> None:
    """Down to a branch at a time, with and without a folder."""
    model = dissect(tiny.build("qwen3_moe", num_hidden_layers=4))
    layered = one_by_one(model, Room(memory, tmp_path if spills else None))
    assert np.array_equal(JOBS[job](layered), JOBS[job](model), equal_nan=True)
    assert not list(tmp_path.iterdir())


def test_visits_of_layers() -> None:
    """Three layers of 8 experts. All alive: one pass. Five alive: 0–4 with the last layer, 5–9, then 10–14
    and 15, of which the last two begin in the second layer.
    """
    model = dissect(tiny.build("olmoe"))
    batches = 3 * WINDOW  # of three windows: a branch of all of them
    for room, expected in ((Room(), 3), (Room(100 * batches), 3), (Room(6 * batches), 3 + 3 + 2 + 2)):
        layered = one_by_one(model, room)
        leave_one_out(layered)
        assert visits(layered) == expected, room


@pytest.mark.parametrize("job", ["leave one out", "positions", "greedy round", "losses"])
def test_states_stay_within_the_bound(
    job: str, model: Anatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, put = [], Streams.put

    def watched(streams: Streams, key: tuple[str | int, ...], state: dict[int | str, torch.Tensor]) -> None:
        put(streams, key, state)
        held.append(streams.held)

    monkeypatch.setattr(Streams, "put", watched)
    JOBS[job](one_by_one(model, Room(8 * WINDOW, tmp_path)))
    assert 4 * WINDOW < max(held) <= 8 * WINDOW


def test_nothing_waits_where_all_weights_are_there(model: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Streams, "put", lambda *_: pytest.fail("a state waits"))
    for work in JOBS.values():
        work(model)


def test_too_small_a_disk_is_said_before_the_first_layer(
    model: Anatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(need_module.SpillFolder, "free", lambda _: 1000)
    layered = one_by_one(model, Room(1, tmp_path))
    with pytest.raises(
        ExciseError, match=r"calibrate: waiting states will need .* 1.00 kB are free.*memory\.spill"
    ):
        statistics(layered)
    assert visits(layered) == 0
    assert not list(tmp_path.iterdir())
