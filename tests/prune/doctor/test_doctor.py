"""`excise doctor`: what would stop a run is a problem and ends with exit 1; the rest is a note."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prune.console.cli import app
from prune.doctor import folders, packages
from prune.doctor.examine import examine
from prune.doctor.words import words


def test_a_sound_machine() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["problems"] == []
    assert said["versions"]["torch"]
    assert said["devices"]["cores"] >= 1
    assert said["devices"]["memory"] > 0
    assert said["cache"]["writable"]


def test_problems_first_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"peft": None, "torch": "1.0"}
    monkeypatch.setattr(
        packages, "requires", lambda name: ["peft>=0.21", "torch>=2.9", "ruff; extra == 'test'"]
    )
    monkeypatch.setattr(packages, "version_of", lambda name: versions.get(name, "1.0"))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    first, second = result.stdout.splitlines()[:2]
    assert first.startswith("problem: peft is not installed; install Excise again")
    assert second.startswith("problem: torch is 1.0, and Excise needs torch>=2.9")


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "is_writable", lambda folder: False)
    result = examine()
    assert any("--output" in problem["way_out"] for problem in result["problems"])
    notes = " ".join(note["way_out"] for note in result["notes"])
    assert "EXCISE_CACHE" in notes
    assert "HF_HOME" in notes


def test_offline_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = examine()
    assert result["offline"]
    assert any("unset HF_HUB_OFFLINE" in note["way_out"] for note in result["notes"])
    assert any(line.startswith("network") and "off" in line for line in words(result))


def test_torch_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def broken() -> bool:
        raise RuntimeError("driver too old")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    problems = examine()["problems"]
    assert any("driver too old" in problem["what"] for problem in problems)


def test_the_cache_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "kept"))
    assert folders.cache()["entries"] == 0
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "entry").write_bytes(b"12345")
    found = folders.cache()
    assert (found["entries"], found["size"], found["writable"]) == (1, 5, True)
    assert not list((tmp_path / "kept").glob(".*")), "looking leaves nothing behind"
