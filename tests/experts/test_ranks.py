"""Which process has ended is known, also one that is still on its way out."""

import os
import subprocess
import sys

import pytest

from experts import ranks
from experts.ranks import Ranks, ended_ranks


@pytest.mark.parametrize(
    ("busy", "patient", "expected"), [(True, True, "rank 1 of 2"), (False, True, ""), (True, False, "")]
)
def test_a_rank_on_its_way_out(
    busy: bool, patient: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waited for inside an exchange, whose failure was the first sign; anywhere else an error is our own."""
    leaving = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.7)"])
    processes = {0: os.getpid(), 1: leaving.pid}
    monkeypatch.setattr(ranks, "_joined", [Ranks(0, 2, processes=processes, busy=busy)])
    assert ended_ranks(patient) == expected
    leaving.wait()
    assert ended_ranks(patient) == "rank 1 of 2"


def test_all_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "PARTING", 0.1)
    monkeypatch.setattr(ranks, "_joined", [Ranks(0, 2, processes={0: os.getpid()}, busy=True)])
    assert ended_ranks(patient=True) == ""
    monkeypatch.setattr(ranks, "_joined", [])
    assert ended_ranks(patient=True) == ""
