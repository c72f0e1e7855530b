"""The bar of a sweep: its total is known before where the branches are, and is reached exactly."""

from pathlib import Path

import pytest

from experts.anatomy import Anatomy, dissect
from experts.room import Room
from experts.sweep import journal
from experts.sweep.progress import Bar
from tests.support import tiny
from tests.support.one_by_one import one_by_one
from tests.support.sweeps import JOBS, LENGTH

WINDOW = LENGTH * 32 * 4  # bytes of the states of one window of a tiny model
KNOWN_BEFORE = ("losses", "statistics", "leave one out")


@pytest.fixture(scope="module")
def model() -> Anatomy:
    return dissect(tiny.build("deepseek_v2"))  # its first layer has no experts


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    """Every bar, and its total when it was made."""
    made: list[Bar] = []

    class Noted(Bar):
        def __enter__(self) -> Bar:
            made.append(self)
            self.total_before = self.total
            return super().__enter__()

    monkeypatch.setattr("experts.sweep.sweep.Bar", Noted)
    return made


@pytest.mark.parametrize("memory", [None, 6 * WINDOW])
@pytest.mark.parametrize("job", JOBS)
def test_ends_at_its_total(job: str, memory: int | None, model: Anatomy, bars: list[Bar]) -> None:
    JOBS[job](one_by_one(model, Room(memory)))
    assert bars
    for bar in bars:
        assert bar.done == bar.total == bar._bar.n == bar._bar.total > 0
        if job in KNOWN_BEFORE and memory is None:
            assert bar.total == bar.total_before


def test_work_by_hand(model: Anatomy, bars: list[Bar]) -> None:
    """Three layers, of which two have 8 experts each; 3 windows of 16 tokens. Clean: 3 layers. Removals: 8
    through two layers, and 8 through one.
    """
    JOBS["leave one out"](one_by_one(model))
    assert bars[0].total == 3 * 16 * (3 + 8 * 2 + 8 * 1)


def test_goes_on_after_an_interruption(
    model: Anatomy, bars: list[Bar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "EVERY", 0.0)

    def stop_in_the_last(span: range) -> None:
        if span.start == 2:
            raise KeyboardInterrupt

    room = Room(None, tmp_path, "model")
    with pytest.raises(KeyboardInterrupt):
        JOBS["leave one out"](one_by_one(model, room, stop_in_the_last))
    JOBS["leave one out"](one_by_one(model, room))
    first, second = bars
    assert first.done == second._bar.initial == 3 * 16 * (2 + 8)
    assert second.done == second.total == first.total


def test_none_where_all_weights_are_there(model: Anatomy, bars: list[Bar]) -> None:
    JOBS["leave one out"](model)
    assert not bars


def test_nothing_is_shown_of_what_is_quick(model: Anatomy, capfd: pytest.CaptureFixture[str]) -> None:
    JOBS["losses"](one_by_one(model))
    assert capfd.readouterr().err == ""
