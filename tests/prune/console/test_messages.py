"""What a command says: on closed and full streams, when it is stopped, with --quiet and with --debug."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from experts.notes import tell
from experts.plan import Plan
from prune.console.messages import listening
from tests.support.commands import ROOT, noted
from tests.support.play import Play
from tests.support.removals import branches_fail


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        (
            "criteria >/dev/full",
            1,
            r"excise: input or output: No space left on device; free some space, or choose another place\n",
        ),
        ("criteria >&-", 0, ""),
        ("inspect /nowhere 2>&- | cat", 0, ""),
        ("inspect /nowhere 2>&1 >&- | cat >&2", 0, r"excise: /nowhere: no such model folder\n"),
        ("export demo plan.json out 2> >(exec 0<&-; sleep 0.1); echo $?; ls >&2", 0, "out\nplan.json\n"),
    ],
)
def test_streams_that_are_closed_or_full(line: str, code: int, error: str, tmp_path: Path) -> None:
    """One line where anybody reads it, nothing of Python's own at exit, and no message in a file that is
    opened later.
    """
    plan = Plan(16, dict.fromkeys(range(6), (0, 1, 2, 3)))  # with a note on its count
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    call = f"{sys.executable} -m prune.entry {line}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", call], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == code
    assert re.fullmatch(error, done.stderr)
    assert done.stdout == ("out: 8.47 MB of tensors, 10.64 MB removed\n1\n" if "export" in line else "")


STOPPED = """
import time
from pathlib import Path
from prune.console.exits import guarded
from prune.checkpoint.atomic_folder import growing

def work():
    with growing(Path("out")):
        print("go", flush=True)
        time.sleep(60)

try:
    guarded(work, quiet=False, debug=False)
except RuntimeError as ended:  # what typer makes an exit code of
    raise SystemExit(ended.exit_code)
"""


@pytest.mark.parametrize("hidden", [False, True])
def test_a_job_that_is_stopped_cleans_up(hidden: bool, tmp_path: Path) -> None:
    """Schedulers and containers send SIGTERM before they kill. A library may make another error of it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, "-c", HIDDEN if hidden else STOPPED], cwd=tmp_path, env=environment, **pipes
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        process.terminate()
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (
        1,
        "excise: interrupted; the same command resumes from what was finished\n",
    )
    assert list(tmp_path.iterdir()) == []


HIDDEN = STOPPED.replace(
    "        time.sleep(60)",
    """        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise ImportError("Could not import module 'PreTrainedModel'")""",
)


TELLING = """
import os
import signal
import time
from prune.console import exits
from prune.console.exits import guarded

def explained(error):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    return str(error)

def work():
    raise ValueError("why it ended")

exits.explained = explained
try:
    guarded(work, quiet=False, debug=False)
except RuntimeError as ended:
    assert signal.getsignal(signal.SIGTERM) is exits._interrupt
    raise SystemExit(ended.exit_code)
"""


def test_a_signal_does_not_cut_off_the_line() -> None:
    """As torchrun sends it to a rank that is telling that another was killed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TELLING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "excise: why it ended\n")


def test_notes_once_and_apart_from_reports_of_libraries(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who switches bars off still wants notes; --quiet means both.

    A warning of the user's own file is a note.
    """
    import logging

    def work() -> None:
        tell("twice\x1b[2J")
        tell("twice\x1b[2J")
        logging.getLogger("a_library").error("a report")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn_explicit("old", DeprecationWarning, str(Path(os.__file__)), 1)
            warnings.warn_explicit("divided by 0", RuntimeWarning, "/home/me/mine.py", 3)

    monkeypatch.setenv("TQDM_DISABLE", "1")
    expected = {
        False: ["note: twice\\x1b[2J", "note: /home/me/mine.py:3: RuntimeWarning: divided by 0"],
        True: [],
    }
    for quiet, lines in expected.items():
        with listening(quiet, debug=False):
            work()
        assert capsys.readouterr().err.splitlines() == lines
    tell("nobody listens")
    assert capsys.readouterr().err == ""


def test_what_was_passed_over_is_shown_with_debug(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fast path that a model cannot take is a note; why it cannot, with --debug.

    A mistake of ours is an error.
    """

    branches_fail(monkeypatch, ValueError("no such cache"), packed=True)
    command = play.command("effects.csv", tmp_path)
    plain = noted([*command, "--force"])
    assert (
        "note: packing does not run on this model (no such cache): measuring with whole forwards"
        in plain.stderr
    )
    assert "Traceback" not in plain.stderr
    shown = noted([*command, "--force", "--debug"])
    assert "debug: ValueError: no such cache; measuring with whole forwards\nTraceback" in shown.stderr
    monkeypatch.setattr("experts.effects.fast_path.only_at", None)
    wrong = noted([*command, "--force"])
    assert wrong.exit_code == 1
    assert re.search(
        r"excise: an error of Excise itself \(TypeError at experts/effects/fast_path\.py:\d+: 'NoneType'",
        wrong.stderr,
    )
