"""Commands in this process and outside, and what they say on stderr."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from prune.console.cli import app

ROOT = Path(__file__).resolve().parents[2]


def noted(command: list[str]) -> Any:
    """The command in this process, with its notes."""
    return CliRunner().invoke(app, [part for part in command if part != "--quiet"])


def outside(
    command: list[str], folder: Path, seconds: float = 120, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own: libraries read their variables when they are loaded."""
    known = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    settings = {**known, "PYTHONPATH": str(ROOT), "HOME": str(folder / "home"), **environment}
    call = [sys.executable, "-m", "prune.entry", *command]
    return subprocess.run(
        call, capture_output=True, text=True, env=settings, cwd=folder, timeout=seconds, check=False
    )


def said(text: str) -> list[str]:
    """Lines of stderr that are no bars."""
    return [line for line in text.splitlines() if line.strip() and "%|" not in line]
