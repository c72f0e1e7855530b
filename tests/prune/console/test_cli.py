"""The command line as a stranger meets it: exit codes, one line per error, clean stdout, quick answers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from prune.console.cli import app
from tests.support.inputs import uniform_plan

if TYPE_CHECKING:
    from tests.support.play import Play

ROOT = Path(__file__).resolve().parents[3]


def excise(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "prune.entry", *arguments]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=settings, check=False)


def test_help_and_usage() -> None:
    found = excise("--help")
    assert found.returncode == 0
    for command in ("prune", "compare", "effects", "export", "inspect", "criteria"):
        assert command in found.stdout
    assert excise("prune", "--nonsense").returncode == 2
    assert excise("nonsense").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", "org/model", "--keep", "-4"), "'--keep': has to be at least 1"),
        (("effects", "demo", "--mode", "foo"), "'--mode': 'foo' is not one of"),
        (("audit", "demo", "--ddof", "2"), "'--ddof': has to be at most 1"),
        (("export", "demo"), "Missing argument 'PLAN'"),
        (("inspect",), "Missing argument 'MODEL'"),
        (("finetune",), "Missing argument 'RECIPE'"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else None,
)
def test_usage_errors_are_in_words_of_a_command_line(arguments: tuple[str, ...], message: str) -> None:
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2
    assert message in " ".join(found.stderr.replace("│", " ").split())


def test_inspect(saved: dict[str, Path]) -> None:
    found = excise("inspect", str(saved["deepseek_v3"]))
    assert found.returncode == 0
    for text in (
        "deepseek_v3",
        "8, top-2",
        "2, a token uses 1",
        "shared experts",
        "pruned by 50%",
        "4 experts per layer",
    ):
        assert text in found.stdout
    assert json.loads(excise("inspect", str(saved["deepseek_v3"]), "--json").stdout)["groups"] == 2


def test_criteria() -> None:
    found = excise("criteria")
    for text in ("reap", "mean g·‖f‖", "2510.13999", "random", "reversed:<name>"):
        assert text in found.stdout
    assert len(json.loads(excise("criteria", "--json").stdout)) >= 17


def test_export(saved: dict[str, Path], tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(uniform_plan((0, 1, 2)).to_json()))
    first = excise("export", str(saved["olmoe"]), str(plan), str(tmp_path / "out"), "--json")
    assert first.returncode == 0
    assert json.loads(first.stdout)["removed"] > 0
    again = excise("export", str(saved["olmoe"]), str(plan), str(tmp_path / "out"))
    assert again.returncode == 1
    assert again.stderr == (
        f"excise: {tmp_path}/out: exists already; choose another output, or "
        f"replace it with --force (in Python force=True)\n"
    )
    assert (
        "This export was not tested against random selection" in (tmp_path / "out" / "README.md").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "/nowhere"), "/nowhere: no such model folder"),
        (("export", "demo", "/nowhere.json", "out"), "/nowhere.json: no such plan file"),
        (("prune", "nowhere"), "nowhere: no such recipe file, and no recipe of that name"),
        (("init", "nowhere"), "nowhere: no such model folder; a model on the hub is named"),
        (("init", "demo", "-o", f"{__file__}/r.yaml"), "test_cli.py is a file, not a folder"),
        (("compare", "demo", "-o", __file__), "test_cli.py is a file, not a folder; choose another"),
        (("prune", "org/model", "--criterion", "", "--dry-run"), "unknown criterion ''"),
        (
            ("prune", "demo", "--dry-run", "--set", "calibration.data={text: gone.txt}"),
            "calibration.data names",
        ),
        (
            ("prune", "demo", "--set", "prune.fracton=0.5"),
            "unknown key 'prune.fracton'; did you mean 'fraction'?",
        ),
        (("prune", "demo", "--set", "prune.fraction=5"), "prune.fraction is 5.0"),
        (("prune", "demo", "--set", "prune.keep=3"), "top_k = 4; keep at least 4"),
        (("prune", "demo", "--set", "criteria=[raep]"), "unknown criterion 'raep'; did you mean reap?"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    found = excise(*arguments, *(["-o", str(tmp_path / "run"), "--quiet"] if arguments[0] == "prune" else []))
    assert found.returncode == 1
    assert found.stderr.startswith("excise: ")
    assert found.stderr.count("\n") == 1
    assert message in found.stderr
    assert found.stdout == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["calibration.length=800"],
            "2 windows of 800 tokens asked, the text has 1; lower sequences or length",
        ),
        (
            ["validate.data={text: [calibration.txt]}", "validate.length=64", "calibration.length=64"],
            "calibration and validation text overlap",
        ),
    ],
)
def test_errors_in_a_text_are_one_line(change: list[str], message: str, play: "Play", tmp_path: Path) -> None:
    """They come after torch, which is in this process already."""
    settings = [part for setting in change for part in ("--set", setting)]
    found = CliRunner().invoke(app, [*play.command("prune", tmp_path / "run"), *settings])
    assert found.exit_code == 1
    assert found.stderr.startswith("excise: ")
    assert found.stderr.count("\n") == 1
    assert message in found.stderr
    assert found.stdout == ""


def test_impossible_budgets_are_refused_without_torch() -> None:
    code = (
        "import sys; from prune.console.cli import app\n"
        "try: app(sys.argv[1:])\nexcept SystemExit as s: assert s.code == 1\n"
        "assert 'torch' not in sys.modules"
    )
    for change in ("prune.fraction=5", "criteria=[raep]", "model=./nowhere"):
        done = subprocess.run(
            [sys.executable, "-c", code, "prune", "demo", "--set", change],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_debug_shows_the_traceback() -> None:
    found = excise("inspect", "/nowhere", "--debug")
    assert found.returncode != 0
    assert "Traceback" in found.stderr


def test_a_hub_that_cannot_be_reached() -> None:
    assert (
        "owner/nope: no such folder, and the hub cannot be reached" in excise("inspect", "owner/nope").stderr
    )


def test_unwritable_output_is_one_line(play: "Play", tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    found = CliRunner().invoke(app, play.command("prune", tmp_path / "file" / "run"))
    assert found.exit_code == 1
    assert found.stderr == (
        f"excise: {tmp_path}/file/run: {tmp_path}/file is a file, not a folder; choose another --output\n"
    )


@pytest.mark.parametrize(
    "delay", [0.02, 0.1, 0.4, 1.0, *(pytest.param(delay, marks=pytest.mark.slow) for delay in (4.0, 7.0))]
)
def test_a_real_ctrl_c(delay: float, tmp_path: Path) -> None:
    """SIGINT from outside, from our first line on: one line, exit 1, no traceback; nothing that looks like a
    checkpoint.

    The clock starts when Python itself is up: what happens while the interpreter starts is not ours to catch.
    """
    code = "from prune.entry import main; print('go', flush=True); main()"
    command = [sys.executable, "-c", code, "prune", "demo", "-o", str(tmp_path / "run"), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert "Traceback" not in error
    assert (process.returncode, out) == (1, "")
    assert error.startswith("excise: interrupted")
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_output_goes_through_any_pipe() -> None:
    command = [sys.executable, "-m", "prune.entry", "criteria"]
    latin = subprocess.run(
        command, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "latin-1"}, check=False
    )
    assert (latin.returncode, latin.stderr) == (0, b"")
    assert b"mean g\xb7" in latin.stdout
    piped = subprocess.run(
        f"{sys.executable} -m prune.entry criteria | head -1",
        shell=True,
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert piped.stderr == b""
