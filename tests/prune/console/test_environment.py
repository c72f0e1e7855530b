"""The environment is not taken for granted: homes, caches, locks, modes, memory limits, launchers, streams, and what stands on stderr."""

import ctypes
import errno
import json
import os
import re
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from typer.testing import CliRunner

from criteria import calibration as calibration_module
from experts import keys, limits, memory
from experts.cache import Cache, cache_folder
from experts.errors import ExciseError
from experts.files import replacing, replacing_folder
from experts.notes import tell
from experts.plan import Plan
from experts.stored_arrays import StoredArrays
from prune.console.cli import app
from prune.console.environment import mend
from prune.console.messages import listening
from tests.support.play import Play

ROOT = Path(__file__).resolve().parents[3]


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


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing that `mend` changes outlives the test."""
    for name, value in os.environ.copy().items():
        monkeypatch.setenv(name, value)
    return monkeypatch


# Files.


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_every_file_has_the_usual_mode(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever library wrote it: scores, adapters, checkpoints, cached statistics, tables, and states that a training goes on from."""
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


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    path, folder = tmp_path / ("long" * 63), tmp_path / "adapter"
    path.write_text("old")
    with suppress(KeyboardInterrupt), replacing(path) as fresh:
        fresh.write_text("half")
        raise KeyboardInterrupt
    with replacing_folder(folder) as new:
        (new / "one").touch()
    with suppress(KeyboardInterrupt), replacing_folder(folder) as new:
        (new / "two").touch()
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert sorted(file.name for file in tmp_path.rglob("*")) == sorted([path.name, "adapter", "one"])
    with replacing_folder(folder) as new:
        (new / "two").touch()
    assert [file.name for file in folder.iterdir()] == ["two"]


def test_a_full_disk_names_the_file_and_not_its_temporary_name(tmp_path: Path) -> None:
    """Also where the library only says that it could not write; another file's error keeps its name."""

    def at(error: Exception) -> str:
        with pytest.raises(OSError, match=".") as caught, replacing(tmp_path / "result"):
            raise error
        return Path(caught.value.filename).name

    full = os.strerror(errno.ENOSPC)
    assert at(OSError(errno.ENOSPC, full)) == "result"
    assert at(OSError(errno.ENOSPC, full, str(tmp_path / "other"))) == "other"
    assert at(SafetensorError(f"Error while serializing: I/O error: {full} (os error 28)")) == "result"
    assert (
        at(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 534")) == "result"
    )
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "gone" / "result"):
        pass
    assert caught.value.filename == str(tmp_path / "gone" / "result")
    assert list(tmp_path.iterdir()) == []


def test_writers_of_one_name_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two containers on one volume, with the same process number: every reader finds one result or the other."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    results = [{"a": np.full((50, 50), float(value))} for value in range(2)]
    failed: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(60):
                StoredArrays(tmp_path / "entry", "key").write(results[number])
        except OSError as error:
            failed.append(error)

    StoredArrays(tmp_path / "entry", "key").write(results[0])
    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found = StoredArrays(tmp_path / "entry", "key").read()["a"]
        assert (found == found[0, 0]).all()
    assert not failed
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


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


# The cache.


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calibrations and experiments that are really measured."""
    done: list[str] = []
    observe, measure = calibration_module.observe, calibration_module.measure
    monkeypatch.setattr(
        calibration_module, "observe", lambda *given: (done.append("observe"), observe(*given))[1]
    )
    monkeypatch.setattr(
        calibration_module, "measure", lambda *given: (done.append("measure"), measure(*given))[1]
    )
    return done


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


def test_damaged_entries_are_measured_again(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics and experiments alike; the run says nothing of it, and its result is the same."""
    done, command = counting(monkeypatch), measuring(play, tmp_path / "run")
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
    """Not to be read, nor replaced (a folder with the sticky bit): measured, kept in the run, and never stops it."""
    done = counting(monkeypatch)
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
    assert len(list((tmp_path / "two" / "cache").iterdir())) == 2


def test_without_a_cache_a_run_keeps_its_calibration(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once, before the calibration; interrupted, the same run does not calibrate again."""
    monkeypatch.setenv("EXCISE_CACHE", "/dev/null/cache")
    done = counting(monkeypatch)
    with monkeypatch.context() as broken:
        broken.setattr("prune.run.pipeline.save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        first = noted(measuring(play, tmp_path / "run"))
    notes = [line for line in said(first.stderr) if "/dev/null/cache" in line]
    assert len(notes) == 1
    assert notes[0].startswith(
        f"note: /dev/null/cache cannot be written (Not a directory): results stay in {tmp_path}/run/cache, for"
    )
    assert noted(measuring(play, tmp_path / "run")).exit_code == 0
    assert done == ["observe", "measure"]
    heard: list[str] = []
    monkeypatch.setattr("experts.cache.tell", heard.append)
    monkeypatch.setattr(calibration_module, "observe", lambda *_: heard.append("observe") or 1 / 0)
    noted(measuring(play, tmp_path / "other"))
    assert [line[:9] for line in heard] == ["/dev/null", "observe"]


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative folders of the desktop standard do not count; a user without a home has none, and that is no error."""
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("EXCISE_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("EXCISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "excise"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "excise"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(
        os.path, "expanduser", lambda path: path
    )  # no HOME, and no entry in the list of users
    assert cache_folder() is None
    assert Cache(tmp_path / "run").shared is None


def test_caches_of_libraries_move_where_theirs_cannot_be_written(
    clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And stay where they can: nothing is downloaded or converted twice."""
    for name in ("HF_HOME", "HF_MODULES_CACHE", "HF_DATASETS_CACHE"):
        clean.delenv(name, raising=False)
    for home in (str(tmp_path / "hub"), "relative"):
        clean.setenv("HF_HOME", home)
        mend()
        assert not {"HF_MODULES_CACHE", "HF_DATASETS_CACHE"} & os.environ.keys()
        assert os.environ["HF_HOME"] == home
    clean.setenv("HF_DATASETS_CACHE", "/dev/null/x")
    clean.setenv("HF_HOME", "/dev/null/y")
    mend()
    assert all(Path(os.environ[name]).parent.is_dir() for name in ("HF_MODULES_CACHE", "HF_DATASETS_CACHE"))
    assert os.environ["HF_HOME"] == "/dev/null/y", "what lies there can still be read"
    with clean.context() as full:
        full.setattr(
            "tempfile.mkdtemp",
            lambda **_: (_ for _ in ()).throw(FileNotFoundError("No usable temporary directory")),
        )
        mend()
    clean.delenv("HF_HOME")
    clean.delenv("XDG_CACHE_HOME", raising=False)
    clean.setattr(os.path, "expanduser", lambda path: path)
    mend()
    assert Path(os.environ["HF_HOME"]).is_dir()


# Locks and systems.


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


def test_another_system_is_told_in_one_line() -> None:
    code = "import os; from prune import entry; os.name = 'nt'; entry.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("excise: Excise runs on Linux")
    assert done.stderr.count("\n") == 1


# Run folders.


def test_a_checkout_that_is_not_installed(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise keys.PackageNotFoundError(name)

    monkeypatch.setattr(keys, "version", missing)
    assert CliRunner().invoke(app, play.command("prune", tmp_path / "run")).exit_code == 0
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["excise"] == "not installed"


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


def test_a_name_that_is_no_utf8_is_refused_before_the_work(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors and pyarrow could not open it: found after hours, when the checkpoint is reloaded or the table is written."""
    done = counting(monkeypatch)
    bad = tmp_path / os.fsdecode(b"caf\xe9")
    for name in ("prune", "effects.csv"):
        found = CliRunner().invoke(app, play.command(name, bad))
        assert found.exit_code == 1
        assert re.search(r"excise: .*caf\\udce9.*: the name holds bytes that are not UTF-8", found.stderr)
    assert done == []
    assert not bad.exists()


# Memory.


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


GIB = 2**30
GROUPS: dict[str, tuple[str, dict[str, object], list[int]]] = {
    "a job": (
        "0::/slurm/job",
        {
            "slurm/job/memory.max": 4 * GIB,
            "slurm/job/memory.current": 3 * GIB,
            "slurm/job/memory.stat": f"anon 5\ninactive_file {GIB}",
        },
        [2 * GIB],
    ),
    "its parent": (
        "0::/slurm/job",
        {
            "slurm/job/memory.max": "max",
            "slurm/job/memory.current": GIB,
            "slurm/memory.max": 8 * GIB,
            "slurm/memory.high": 3 * GIB,
            "slurm/memory.current": 2 * GIB,
        },
        [GIB],
    ),
    "a container that sees the host's path": (
        "0::/docker/0af",
        {"memory.max": 2 * GIB, "memory.current": GIB},
        [GIB],
    ),
    "more used than allowed": ("0::/", {"memory.max": GIB, "memory.current": 2 * GIB}, [0]),
    "version 1": (
        "5:cpu:/x\n4:memory:/x",
        {
            "memory/x/memory.limit_in_bytes": 4 * GIB,
            "memory/x/memory.usage_in_bytes": 3 * GIB,
            "memory/x/memory.stat": f"total_inactive_file {GIB}",
            "memory/memory.limit_in_bytes": 9223372036854771712,
            "memory/memory.usage_in_bytes": 0,
        },
        [2 * GIB, 9223372036854771712],
    ),
    "both": (
        "4:memory:/x\n0::/y",
        {"memory/x/memory.limit_in_bytes": 1, "unified/y/memory.max": GIB, "unified/y/memory.current": 0},
        [GIB],
    ),
    "no limit": ("0::/", {"cgroup.procs": 1}, []),
    "nonsense": (
        "nonsense\n::\n0::/../..",
        {"memory.max": "many", "memory.current": -1, "memory.stat": "\n"},
        [],
    ),
}


@pytest.mark.parametrize("case", GROUPS)
def test_memory_left_in_control_groups(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, files, left = GROUPS[case]
    own = tmp_path / "own"
    own.write_text(line)
    monkeypatch.setattr(limits, "_address_space", lambda: iter(()))
    assert list(limits.memory_left(tree(tmp_path / "groups", files), own)) == left
    assert list(limits.memory_left(tmp_path / "none", tmp_path / "none")) == []


def test_free_memory_is_the_least_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU; chunks, and whether a recovery fits beside the whole model, follow it."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "memory_left", lambda: iter((3000, 2000)))
    assert memory.free_bytes(cpu) == 2000
    assert memory.chunk_size(cpu, 100, 512) == 6
    monkeypatch.setattr(memory, "memory_left", lambda: iter(()))
    assert abs(memory.free_bytes(cpu) - psutil.virtual_memory().available) < GIB


def test_a_limit_of_address_space() -> None:
    """ulimit -v, in a process of its own: a limit cannot be raised again."""
    code = "from experts.limits import memory_left; print(min(memory_left()))"
    call = f"ulimit -v {4 * 2**20}; exec {sys.executable} -c '{code}'"
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, cwd=ROOT, check=True)
    assert 2 * GIB < int(done.stdout) < 4 * GIB


# Launchers and variables.


@pytest.mark.parametrize(
    ("size", "rank"), [("WORLD_SIZE", "RANK"), ("WORLD_SIZE", "LOCAL_RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK"), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")]
)  # fmt: skip
def test_several_processes_are_refused(size: str, rank: str, clean: pytest.MonkeyPatch) -> None:
    clean.setenv(size, "2")
    clean.setenv(rank, "0")
    with pytest.raises(ExciseError, match=f"{size}=2 says that several processes.*: unset {size} {rank}"):
        mend()


def test_left_over_variables_are_dropped(clean: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process of one is a launcher's too, and fine; a batch of Slurm that runs one step names all its tasks."""
    heard: list[str] = []
    monkeypatch.setattr("prune.console.environment.tell", heard.append)
    one = {
        "WORLD_SIZE": "1",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "nowhere",
        "MASTER_PORT": "1",
        "PMI_RANK": "0",
    }
    kept = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "OMP_NUM_THREADS": "2,1", "ACCELERATED": "yes"}
    for name, value in {**one, **kept}.items():
        clean.setenv(name, value)
    mend()
    assert not one.keys() & os.environ.keys()
    assert kept.items() <= os.environ.items()
    assert heard == []
    clean.setenv("WORLD_SIZE", "2")
    clean.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    clean.setenv("OMP_NUM_THREADS", "-3")
    mend()
    assert not {"WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "OMP_NUM_THREADS"} & os.environ.keys()
    assert [line.partition(" in the environment")[0] for line in heard] == [
        "WORLD_SIZE=2",
        "ACCELERATE_MIXED_PRECISION",
        "OMP_NUM_THREADS=-3",
    ]


ODD = {
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "10.255.255.1",
    "MASTER_PORT": "29500",
    "ACCELERATE_MIXED_PRECISION": "fp16",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "CUDA_VISIBLE_DEVICES": "garbage",
    "MKL_NUM_THREADS": "abc",
    "TRANSFORMERS_OFFLINE": "1",
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "TMPDIR": "/nowhere",
    "COLUMNS": "0",
    "TQDM_DISABLE": "1",
}


@pytest.mark.slow
def test_a_recovery_in_an_odd_environment(play: Play, tmp_path: Path) -> None:
    """It does not hang, its numbers are those of a plain one, and every line on stderr is a note of ours: none of a library.

    Unequal counts are reloaded through a folder of modules that transformers keeps in its home.
    """
    sets = ("--set", "prune.scope=global", "--set", "prune.fraction=0.4", "--set", "criteria=[reap_sum]")
    sets += ("--set", "prune.protect_super_experts=false")
    plain = CliRunner().invoke(app, [*play.command("finetune", tmp_path / "plain"), *sets])
    assert plain.exit_code == 0, plain.output
    command = [part for part in (*play.command("finetune", tmp_path / "café"), *sets) if part != "--quiet"]
    done = outside(command, tmp_path, HOME="/dev/null/home", **ODD)
    assert done.returncode == 0, done.stderr
    assert [line[:37] for line in done.stderr.splitlines()] == [
        "note: WORLD_SIZE=2 in the environment",
        "note: ACCELERATE_MIXED_PRECISION, ACC",
        "note: MKL_NUM_THREADS=abc in the envi",
        "note: /dev/null/home/.cache/excise ca",
        "note: unequal counts per layer: load ",
        "note: layers keep 3, 5, 6 experts, no",
    ]
    one, other = (
        json.loads((tmp_path / name / "recovery.json").read_text())["plans"] for name in ("plain", "café")
    )
    assert [plan["measures"] for plan in one] == [plan["measures"] for plan in other]
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "café", "cache"}, (
        "no folder called ~ or home"
    )


def test_a_launcher_is_refused_and_a_width_of_nothing_is_not_used(tmp_path: Path) -> None:
    refused = outside(["prune", "demo"], tmp_path, **ODD, RANK="0", LOCAL_RANK="0")
    assert refused.returncode == 1
    assert refused.stderr.startswith("excise: WORLD_SIZE=2 says that several processes were started together")
    assert refused.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert "Usage" in outside(["--help"], tmp_path, COLUMNS="0").stdout


# Streams and messages.


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
    """One line where anybody reads it, nothing of Python's own at exit, and no message in a file that is opened later."""
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


def test_a_job_that_is_stopped_cleans_up(tmp_path: Path) -> None:
    """Schedulers and containers send SIGTERM before they kill."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", STOPPED], cwd=tmp_path, env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        process.terminate()
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (
        1,
        "excise: interrupted; the same command resumes after the last finished stage\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_notes_once_and_apart_from_reports_of_libraries(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who switches bars off still wants notes; --quiet means both. A warning of the user's own file is a note."""
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
    """A fast path that a model cannot take is a note; why it cannot, with --debug. A mistake of ours is an error."""

    def fail(*_: Any, **__: Any) -> Any:
        raise kind("no such cache")

    monkeypatch.setattr("experts.effects.fast_path.packed", fail)
    kind: type[Exception] = ValueError
    command = play.command("effects.csv", tmp_path)
    plain = noted([*command, "--force"])
    assert (
        "note: packing does not run on this model (no such cache): measuring with whole forwards"
        in plain.stderr
    )
    assert "Traceback" not in plain.stderr
    shown = noted([*command, "--force", "--debug"])
    assert "debug: ValueError: no such cache; measuring with whole forwards\nTraceback" in shown.stderr
    monkeypatch.setattr("experts.effects.fast_path.packed", lambda *_: None)
    wrong = noted([*command, "--force"])
    assert wrong.exit_code == 1
    assert re.search(
        r"excise: an error of Excise itself \(TypeError at experts/effects/fast_path\.py:\d+: 'NoneType'",
        wrong.stderr,
    )
