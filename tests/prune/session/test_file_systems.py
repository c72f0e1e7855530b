"""Modes, locks, names and calls that a file system may not have."""

import ctypes
import errno
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from typer.testing import CliRunner

from experts import keys
from prune.console.cli import app
from tests.support.commands import noted, said
from tests.support.counting import measurements
from tests.support.play import Play


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.slow
def test_every_file_has_the_usual_mode(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever library wrote it: scores, adapters, checkpoints, cached statistics, tables, and states that a
    training goes on from.
    """
    states, save = {}, PeftModel.save_pretrained

    def look(*given: Any, **options: Any) -> None:
        states.update(
            {path: path.stat().st_mode for path in (tmp_path / "out").rglob("states/checkpoint-1/*")}
        )
        save(*given, **options)

    monkeypatch.setattr(PeftModel, "save_pretrained", look)
    with umask(0o026):
        for name in ("finetune", "effects.csv", "effects.parquet"):
            done = CliRunner().invoke(app, play.command(name, tmp_path / "out"))
            assert done.exit_code == 0, done.output
    files = {
        path: path.stat().st_mode
        for folder in ("out", "cache")
        for path in (tmp_path / folder).rglob("*")
        if path.is_file()
    }
    assert {"scores.safetensors", "adapter_model.safetensors", "model.safetensors"} <= {
        path.name for path in files
    }
    assert {path.parent.name for path in files} >= {"cache", "adapter", "checkpoint"}
    assert "adapter_model.safetensors" in {path.name for path in states}
    found = {path: oct(stat.S_IMODE(mode)) for path, mode in {**files, **states}.items()}
    assert found == dict.fromkeys(found, "0o640")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, None])
def test_a_file_system_without_locks(
    code: int | None, play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a system without them: the work is done, with a note."""

    def refuse(*_: Any) -> None:
        raise OSError(code, "no locks here")

    if code is None:
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", refuse)
    done = noted(play.command("prune", tmp_path / "run"))
    assert done.exit_code == 0, done.output
    assert (
        f"note: {tmp_path}/run: this file system has no locks; start no second run in this folder"
        in done.stderr.splitlines()
    )


@pytest.mark.parametrize("code", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_that_is_held_still_refuses(
    code: int, play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(*_: Any) -> None:
        raise OSError(code, "held")

    monkeypatch.setattr("fcntl.flock", held)
    done = CliRunner().invoke(app, play.command("prune", tmp_path / "run"))
    assert said(done.stderr)[-1].startswith(f"excise: {tmp_path}/run: another run is at work in this folder")


def test_what_only_linux_has(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without preadv and renameat2 the same bytes are written."""
    command = play.command("export", tmp_path / "out")
    assert CliRunner().invoke(app, command).exit_code == 0
    before = (tmp_path / "out" / "checkpoint" / "model.safetensors").read_bytes()
    monkeypatch.delattr(os, "preadv")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert CliRunner().invoke(app, [*command, "--force"]).exit_code == 0
    assert (tmp_path / "out" / "checkpoint" / "model.safetensors").read_bytes() == before


def test_a_checkout_that_is_not_installed(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise keys.PackageNotFoundError(name)

    monkeypatch.setattr(keys, "version", missing)
    assert CliRunner().invoke(app, play.command("prune", tmp_path / "run")).exit_code == 0
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["excise"] == "not installed"


def test_a_name_that_is_no_utf8_is_refused_before_the_work(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors and pyarrow could not open it: found after hours, when the checkpoint is reloaded or the
    table is written.
    """
    done = measurements(monkeypatch)
    bad = tmp_path / os.fsdecode(b"caf\xe9")
    for name in ("prune", "effects.csv"):
        found = CliRunner().invoke(app, play.command(name, bad))
        assert found.exit_code == 1
        assert re.search(r"excise: .*caf\\udce9.*: the name holds bytes that are not UTF-8", found.stderr)
    assert done == []
    assert not bad.exists()
