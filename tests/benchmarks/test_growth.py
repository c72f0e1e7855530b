"""The script that measures how costs grow runs small; its exponents are those of power laws."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import growth

ROOT = Path(__file__).resolve().parents[2]
SIZES = (1, 2, 4, 8, 16)


@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_exponents_are_those_of_power_laws(power: float) -> None:
    seconds = [3.0 * size**power for size in SIZES]
    found = growth.exponent(SIZES, seconds)
    assert [found["exponent"], *found["interval"]] == pytest.approx([power] * 3, abs=1e-3)


def test_an_interval_covers_a_law_under_noise() -> None:
    seconds = [size * factor for size, factor in zip(SIZES, (1.1, 0.9, 1.05, 0.95, 1.1), strict=True)]
    low, high = growth.exponent(SIZES, seconds)["interval"]
    assert 0.8 < low < 1 < high < 1.2


@pytest.mark.slow
def test_every_section_runs_small(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(ROOT)  # its processes import from here
    monkeypatch.setattr(sys, "argv", ["growth", "--tiny", "--repetitions", "1", "--folder", str(work)])
    growth.main()
    found = json.loads(capsys.readouterr().out)
    for axis, sizes in growth.TINY_AXES.items():
        of_axis = found["growth"][axis]
        assert of_axis["sizes"] == list(sizes)
        assert ("observe" in of_axis) == (axis != "plans")
        total, loading = (of_axis["plan_losses"][part]["cpu_seconds"] for part in ("total", "loading"))
        assert all(0 < less < more for less, more in zip(loading, total, strict=True))
    assert found["against_whole"]["bit_equal"]
    assert 0 < found["memory"]["tiny"]["libraries_gb"] < found["memory"]["tiny"]["peak_gb"]
    assert not list(work.iterdir())
