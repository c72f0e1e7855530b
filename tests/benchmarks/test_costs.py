"""The tables of docs/scale.md are those that the program prints."""

import pytest

from benchmarks import costs
from tests.support.commands import ROOT


def test_the_page_shows_what_the_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    costs.main()
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    memory, time = capsys.readouterr().out.strip().split("\n\n")
    assert memory in page
    assert time in page


def test_what_does_not_fit_is_not_resident() -> None:
    """671 GB in FP8 are twice that in memory, and a layer of 34 GB fits 2.5 times into no card."""
    machine = costs.Machine(cards=8)
    assert "resident" in costs.fastest(costs.MODELS["OLMoE-1B-7B"], machine)
    assert "resident" not in costs.fastest(costs.MODELS["DeepSeek-V3"], machine)
    assert "cores" in costs.fastest(costs.MODELS["1 T (Kimi-K2's shape)"], machine)
