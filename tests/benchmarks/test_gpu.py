"""The GPU's script runs on a CPU, small: everything that has to be bit-equal is, and no section fails."""

import json
import sys

import pytest

from benchmarks import gpu


def test_every_section_of_the_gpu_script_holds_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--device", "cpu"])
    gpu.main()
    results = json.loads(capsys.readouterr().out)
    for dtype in ("float32", "bfloat16"):
        found = results[dtype]
        assert not [name for name, section in found.items() if "error" in section]
        assert found["bit_equal"]["restricted_is_cut"]
        assert found["bit_equal"]["restricted_is_reloaded"]
        assert found["sweep"]["resident_bit_equal"]
        assert found["sweep"]["streamed_bit_equal"]
    assert results["bfloat16"]["effects"]["removals"] == 30
    assert results["bfloat16"]["effects"]["largest_difference"] < 0.02
    assert results["bfloat16"]["recovery"]["points"] > 1
    at_once, by_expert = results["bfloat16"]["refit_at_once"], results["bfloat16"]["refit_by_expert"]
    assert at_once["ridges"] == by_expert["ridges"]
    assert at_once["left"] == pytest.approx(by_expert["left"], abs=0.01)
