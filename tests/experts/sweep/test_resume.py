"""A sweep that is interrupted goes on from its last record, to the same bytes."""

import fcntl
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

from criteria.gradient import _slopes_at, _squared_slopes
from experts.anatomy import Anatomy, dissect
from experts.decoder import Part
from experts.room import Room
from experts.sweep import journal
from experts.sweep.branch import Branch
from experts.sweep.runner import Runner
from tests.support import architectures, tiny
from tests.support.one_by_one import one_by_one, visits
from tests.support.sweeps import JOBS, LENGTH

WINDOW = LENGTH * 32 * 4  # bytes of the states of one window of a tiny model
KILLS = 50


class Killed(BaseException):
    """Nothing that a handler would catch."""


@pytest.fixture(scope="module")
def model() -> Anatomy:
    return dissect(tiny.build("olmoe"))


@pytest.fixture(autouse=True)
def _a_record_of_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "EVERY", 0.0)


def room(folder: Path, key: str = "model", memory: int | None = 16 * WINDOW) -> Room:
    return Room(memory, folder, key)


def interrupt(job: str, model: Anatomy, room: Room, visit: int) -> bool:
    """Stop a job before a visit of a layer, counted from 1. False if it had ended before."""
    seen = 0

    def stop(_: range) -> None:
        nonlocal seen
        seen += 1
        if seen == visit:
            raise Killed

    try:
        JOBS[job](one_by_one(model, room, stop))
    except Killed:
        return True
    return False


def assert_only_results_are_left(job: str, folder: Path) -> None:
    """Nobody else writes down what a greedy round found: it is read from the record, and nothing runs."""
    left = list(folder.iterdir())
    if job != "greedy round":
        assert not left
        return
    assert [file.suffix for file in sorted(left[0].iterdir())] == [".states", ".json"]
    (left[0] / "record.json").unlink()
    shutil.rmtree(left[0])


@pytest.mark.parametrize("job", JOBS)
def test_goes_on_where_it_was(job: str, model: Anatomy, tmp_path: Path) -> None:
    whole = one_by_one(model, Room(16 * WINDOW))
    expected = JOBS[job](whole)
    for place in (visits(whole) // 2 + 1, visits(whole)):
        assert interrupt(job, model, room(tmp_path), place)
        resumed = one_by_one(model, room(tmp_path))
        assert np.array_equal(JOBS[job](resumed), expected, equal_nan=True)
        assert visits(resumed) == visits(whole) - (place - 1)
        assert_only_results_are_left(job, tmp_path)


def test_halves_go_on_where_they_were(
    model: Anatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies that did not fit into memory, of which the halves wait."""
    run = Runner.branch

    def hungry(self: Runner, part: Part, branch: Branch, *rest: Any) -> Any:
        if branch.position is not None and len(branch.position) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return run(self, part, branch, *rest)

    monkeypatch.setattr(Runner, "branch", hungry)
    whole = one_by_one(model, Room(16 * WINDOW))
    expected = JOBS["positions"](whole)
    assert interrupt("positions", model, room(tmp_path), 2)
    resumed = one_by_one(model, room(tmp_path))
    assert np.array_equal(JOBS["positions"](resumed), expected)
    assert visits(resumed) == visits(whole) - 1


def test_what_layers_hand_upward_is_remembered(tmp_path: Path) -> None:
    """A layer that hands more than the stream to the next one, below the layers that are left."""
    model = dissect(architectures.build("glm_moe_dsa").eval())
    expected = JOBS["losses"](model)
    assert interrupt("losses", model, room(tmp_path), 3)
    assert np.array_equal(JOBS["losses"](one_by_one(model, room(tmp_path))), expected)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [None, 2 * WINDOW])
@pytest.mark.parametrize("job", JOBS)
def test_interrupted_in_every_layer(job: str, memory: int | None, model: Anatomy, tmp_path: Path) -> None:
    """It gets one layer further each time."""
    left, times = room(tmp_path, memory=memory), 0
    while interrupt(job, model, left, 2):
        times += 1
    assert_only_results_are_left(job, tmp_path)
    whole = one_by_one(model, Room(memory))
    expected = JOBS[job](whole)
    assert times == visits(whole) - 1
    while interrupt(job, model, left, 2):
        pass
    assert_only_results_are_left(job, tmp_path)
    assert np.array_equal(expected, JOBS[job](model), equal_nan=True)
    for _ in range(times):
        assert interrupt(job, model, left, 2)
    assert np.array_equal(JOBS[job](one_by_one(model, left)), expected, equal_nan=True)


def record_of(folder: Path) -> Path:
    (record,) = folder.glob("*/record.json")
    return record


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def main_file(folder: Path) -> Path:
    record = record_of(folder)
    return record.with_name(json.loads(record.read_text())["main"])


DAMAGES = {
    "half-written record": lambda folder: cut(record_of(folder)),
    "no record of ours": lambda folder: record_of(folder).write_text("[]"),
    "half-written states": lambda folder: cut(main_file(folder)),
    "a bit of the states": lambda folder: flip(main_file(folder)),
    "states are gone": lambda folder: main_file(folder).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_ignored_and_said(
    damage: str, model: Anatomy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert interrupt("leave one out", model, room(tmp_path), 4)
    DAMAGES[damage](tmp_path)
    begins_anew(model, room(tmp_path), caplog)


def test_a_record_of_another_model_is_ignored_and_said(
    model: Anatomy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert interrupt("leave one out", model, room(tmp_path), 4)
    begins_anew(model, room(tmp_path, "another"), caplog)


def begins_anew(model: Anatomy, room: Room, caplog: pytest.LogCaptureFixture) -> None:
    whole = one_by_one(model, Room(room.memory))
    expected = JOBS["leave one out"](whole)
    resumed = one_by_one(model, room)
    with caplog.at_level(logging.INFO, "excise"):
        assert np.array_equal(JOBS["leave one out"](resumed), expected)
    assert visits(resumed) == visits(whole)
    assert "this record cannot be used" in caplog.text
    assert "the sweep begins anew" in caplog.text


def test_another_job_leaves_the_record_alone(model: Anatomy, tmp_path: Path) -> None:
    assert interrupt("leave one out", model, room(tmp_path), 4)
    JOBS["losses"](one_by_one(model, room(tmp_path)))
    resumed = one_by_one(model, room(tmp_path))
    JOBS["leave one out"](resumed)
    whole = one_by_one(model, Room(16 * WINDOW))
    JOBS["leave one out"](whole)
    assert visits(resumed) == visits(whole) - 3


def test_without_a_key_nothing_stays(model: Anatomy, tmp_path: Path) -> None:
    assert interrupt("leave one out", model, room(tmp_path, ""), 4)
    assert not list(tmp_path.iterdir())


def test_only_the_record_stays(model: Anatomy, tmp_path: Path) -> None:
    """And what it names."""
    assert interrupt("leave one out", model, room(tmp_path), 4)
    record = record_of(tmp_path)
    named = json.loads(record.read_text())["files"]
    assert {path.name for path in record.parent.iterdir()} == {"record.json", *named}


def test_two_processes_at_the_same_work(
    model: Anatomy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second one works without a record, and leaves that of the first alone."""
    assert interrupt("leave one out", model, room(tmp_path), 4)
    before = record_of(tmp_path).read_bytes()
    descriptor = os.open(record_of(tmp_path).parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with caplog.at_level(logging.INFO, "excise"):
        got = JOBS["leave one out"](one_by_one(model, room(tmp_path)))
    os.close(descriptor)
    assert np.array_equal(got, JOBS["leave one out"](model))
    assert "another process is at the same work" in caplog.text
    assert record_of(tmp_path).read_bytes() == before


@pytest.mark.parametrize(("part", "parts"), [(25.0, 2), (59.0, 1), (61.0, 1), (500.0, 1), (1.0, 59)])
def test_a_minute_or_a_layer_is_lost_at_most(
    part: float, parts: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A record is due once the next part would end more than a minute after the one before."""
    now = 0.0
    monkeypatch.setattr(journal, "EVERY", 60.0)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    records = journal.Journal(journal.SpillFolder(tmp_path / "sweep"), "key")
    for _ in range(3):
        asked = []
        for _ in range(parts):
            now += part
            asked.append(records.is_due())
        assert asked == [False] * (parts - 1) + [True]
        records.write({"number": 1}, [])


def test_a_full_disk_costs_the_record_alone(
    model: Anatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal.SpillFolder, "free", lambda _: 10)
    with caplog.at_level(logging.INFO, "excise"):
        got = JOBS["leave one out"](one_by_one(model, room(tmp_path, memory=None)))
    assert np.array_equal(got, JOBS["leave one out"](model))
    assert caplog.text.count("without a new record of its progress") == 1


def work_to_the_end(model: Anatomy, room: Room, result: Path) -> None:
    """In a process of its own."""
    # tqdm's lock is shared by forked processes: one that is killed while it holds it stops all that follow.
    tqdm.set_lock(threading.RLock())
    found = JOBS["leave one out"](one_by_one(model, room))
    result.write_bytes(found.tobytes())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_any_moment(model: Anatomy, tmp_path: Path) -> None:
    """SIGKILL, also while a record is written."""
    context, result, left = multiprocessing.get_context("fork"), tmp_path / "result", room(tmp_path / "spill")
    expected = JOBS["leave one out"](model).tobytes()

    def started() -> multiprocessing.process.BaseProcess:
        process = context.Process(target=work_to_the_end, args=(model, left, result))
        process.start()
        return process

    begun = time.monotonic()
    started().join()
    taken, rng, resumed = time.monotonic() - begun, np.random.default_rng(0), 0
    for _ in range(KILLS):
        result.unlink()
        killed = started()
        time.sleep(rng.uniform(0, taken))
        os.kill(killed.pid or 0, signal.SIGKILL)
        killed.join()
        resumed += any(left.spill.glob("*/record.json")) if left.spill else 0
        started().join()
        assert result.read_bytes() == expected
        assert not list((tmp_path / "spill").iterdir())
    assert resumed > KILLS // 4


@pytest.mark.parametrize("name", ["gradient", "fisher"])
def test_slopes_go_on_where_they_were(name: str, model: Anatomy, tmp_path: Path) -> None:
    """On the way up and on the way down; three layers take five visits."""

    parts = torch.split(tiny.ids(3, LENGTH), 2)

    def measured(anatomy: Anatomy) -> np.ndarray:
        if name == "gradient":
            return np.stack(_slopes_at(anatomy, [(part,) for part in parts], 0.5))
        signs = [torch.ones(len(part), 2, LENGTH - 1) for part in parts]
        return np.stack(_squared_slopes(anatomy, list(zip(parts, signs, strict=True))))

    whole = one_by_one(model, Room(2 * WINDOW))
    expected = measured(whole)
    assert np.array_equal(expected, measured(model))
    assert visits(whole) == 5
    for place in range(1, 6):
        folder = tmp_path / str(place)
        seen = 0

        def stop(_: range, last: int = place) -> None:
            nonlocal seen
            seen += 1
            if seen == last:
                raise Killed

        with pytest.raises(Killed):
            measured(one_by_one(model, room(folder, memory=2 * WINDOW), stop))
        resumed = one_by_one(model, room(folder, memory=2 * WINDOW))
        assert np.array_equal(measured(resumed), expected)
        assert visits(resumed) == 5 - (place - 1)
        finished = one_by_one(model, room(folder, memory=2 * WINDOW))
        assert np.array_equal(measured(finished), expected)
        assert visits(finished) == 0
