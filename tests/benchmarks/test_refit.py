"""The refit's benchmark at its smallest: plans and random plans, before and after."""

import json
import sys

import pytest

from benchmarks import refit, refit_growth


@pytest.mark.slow
def test_small(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        sys,
        "argv",
        ["refit", "--randoms", "2", "--windows", "4", "--criterion", "reap_sum", "--dtype", "float32"],
    )
    refit.main()
    found = json.loads(capsys.readouterr().out)["plans"]["reap_sum"]
    assert found["after"]["delta"] < found["before"]["delta"]
    assert found["after"]["random_mean"] < found["before"]["random_mean"]
    assert set(found["after"]["domains"]) == {"code", "prose"}


def test_growth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Both ways solve the same layer; the last line of it is all that takes long."""
    monkeypatch.setattr(sys, "argv", ["refit_growth", "--tiny", "--repetitions", "1"])
    refit_growth.main()
    found = json.loads(capsys.readouterr().out)
    assert set(found["growth"]) == {"experts", "inner", "tokens"}
    assert all(set(of_axis) == {"sizes", "joint", "blocks"} for of_axis in found["growth"].values())
    assert found["memory"]["joint"]["promised_mb"] > 0
