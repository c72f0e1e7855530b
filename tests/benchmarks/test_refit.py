"""The refit's benchmark at its smallest: plans and random plans, before and after."""

import json
import sys

import pytest

from benchmarks import refit


@pytest.mark.slow
def test_small(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["refit", "--randoms", "2", "--windows", "4", "--criterion", "reap_sum"])
    refit.main()
    found = json.loads(capsys.readouterr().out)["plans"]["reap_sum"]
    assert found["after"]["delta"] < found["before"]["delta"]
    assert found["after"]["random_mean"] < found["before"]["random_mean"]
    assert set(found["after"]["domains"]) == {"code", "prose"}
