"""Results in the cache of the user and of the run: damaged, foreign, left behind, or nowhere."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from criteria import calibration as calibration_module
from experts.stored_arrays import StoredArrays
from prune.console.cli import app
from tests.support.commands import noted, said
from tests.support.counting import measurements
from tests.support.play import Play


def measuring(play: Play, out: Path) -> list[str]:
    return [*play.command("prune", out), "--set", "criteria=[gradient_abs, reap]"]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "half": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\xff" * 1000),
    "another key": lambda path: StoredArrays(path, "other").write({"a": np.zeros(3)}),
    "a link in a circle": lambda path: (path.unlink(), path.symlink_to(path)),
    "a folder": lambda path: (path.unlink(), path.mkdir(), (path / "x").touch()),  # cannot be replaced
}


@pytest.mark.slow
def test_damaged_entries_are_measured_again(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics and experiments alike; the run says nothing of it, and its result is the same."""
    done, command = measurements(monkeypatch), measuring(play, tmp_path / "run")
    assert CliRunner().invoke(app, command).exit_code == 0
    plans = json.loads((tmp_path / "run" / "validation.json").read_text())["plans"]
    for number, damage in enumerate(DAMAGES.values(), 2):
        for entry in (tmp_path / "cache").iterdir():
            damage(entry)
        (tmp_path / "run" / "stages.json").write_text("{}")
        found = CliRunner().invoke(app, [*command, "--force"])
        assert (found.exit_code, said(found.stderr)) == (0, []), found.output
        assert done == ["observe", "measure"] * number
        assert json.loads((tmp_path / "run" / "validation.json").read_text())["plans"] == plans
    noted(command)
    assert done == ["observe", "measure"] * number, "what cannot be replaced is kept in the run"


def test_an_entry_of_another_user_is_a_miss(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to be read, nor replaced (a folder with the sticky bit): measured, kept in the run, and never stops
    it.
    """
    done = measurements(monkeypatch)
    assert CliRunner().invoke(app, measuring(play, tmp_path / "one")).exit_code == 0
    opened, replaced = open, os.replace
    from criteria import statistics
    from experts import stored_arrays

    def forbidden(path: Any, *_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def replace(source: Any, target: Any) -> None:
        forbidden(target) if Path(target).parent == tmp_path / "cache" else replaced(source, target)

    with monkeypatch.context() as foreign:
        read = statistics.safe_open

        def reading(path: Path, *given: Any) -> Any:
            return forbidden(path) if Path(path).parent == tmp_path / "cache" else read(path, *given)

        for module in (statistics, stored_arrays):
            foreign.setattr(module, "safe_open", reading)
        foreign.setattr(os, "replace", replace)
        for _ in range(2):
            found = noted(measuring(play, tmp_path / "two"))
            assert found.exit_code == 0, found.output
    assert done == ["observe", "measure"] * 2
    assert opened is open
    assert len(list((tmp_path / "two" / "cache").glob("*.safetensors"))) == 2


def test_without_a_cache_a_run_keeps_its_calibration(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once, before the calibration; interrupted, the same run does not calibrate again."""
    monkeypatch.setenv("EXCISE_CACHE", "/dev/null/cache")
    done = measurements(monkeypatch)
    with monkeypatch.context() as broken:
        broken.setattr("prune.run.pipeline.save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        first = noted(measuring(play, tmp_path / "run"))
    notes = [line for line in said(first.stderr) if "/dev/null/cache" in line]
    assert len(notes) == 1
    assert notes[0].startswith(
        f"note: /dev/null/cache cannot be written (Not a directory): "
        f"results stay in {tmp_path}/run/cache, for"
    )
    assert noted(measuring(play, tmp_path / "run")).exit_code == 0
    assert done == ["observe", "measure"]
    heard: list[str] = []
    monkeypatch.setattr("experts.cache.tell", heard.append)
    monkeypatch.setattr(calibration_module, "observe", lambda *_: heard.append("observe") or 1 / 0)
    noted(measuring(play, tmp_path / "other"))
    assert [line[:9] for line in heard] == ["/dev/null", "observe"]


def test_what_a_kill_left_goes_with_the_next_run(play: Play, tmp_path: Path) -> None:
    """In the run folder at once, in the cache after a day: a younger file may be another run's."""
    for folder in ("out", "cache"):
        (tmp_path / folder).mkdir()
        for name in (".excise-0123456789abcdef.new", ".excise-fedcba9876543210.new"):
            (tmp_path / folder / name).touch()
        os.utime(tmp_path / folder / ".excise-0123456789abcdef.new", (0, 0))
    assert CliRunner().invoke(app, play.command("prune", tmp_path / "out")).exit_code == 0
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob(".excise*")]
    assert left == [Path("cache", ".excise-fedcba9876543210.new")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"), [("prune", "validation.json"), ("finetune", "recovery.json"), ("prune", "losses.csv")]
)
def test_a_damaged_result_is_made_again(name: str, file: str, play: Play, tmp_path: Path) -> None:
    command = play.command(name, tmp_path / "run")
    assert CliRunner().invoke(app, command).exit_code == 0
    whole = (tmp_path / "run" / file).read_bytes()
    for content in (b"{", b"\xff\xfe[1]", b'key\n"' + 200_000 * b"x"):
        (tmp_path / "run" / file).write_bytes(content)
        if file == "losses.csv":
            (tmp_path / "run" / "validation.json").unlink()
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert (tmp_path / "run" / file).read_bytes() == whole
