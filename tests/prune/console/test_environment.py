"""Variables, launchers and homes that a command finds: mended, or refused in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experts.errors import ExciseError
from prune.console.cli import app
from prune.console.environment import LARGE_PAGES, mend, use_large_pages
from tests.support.commands import ROOT, outside
from tests.support.play import Play


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing that `mend` changes outlives the test."""
    for name, value in os.environ.copy().items():
        monkeypatch.setenv(name, value)
    return monkeypatch


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


def test_another_system_is_told_in_one_line() -> None:
    code = "import os; from prune import entry; os.name = 'nt'; entry.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("excise: Excise runs on Linux")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("size", "rank"),
    [
        ("WORLD_SIZE", "RANK"),
        ("WORLD_SIZE", "LOCAL_RANK"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        ("PMI_SIZE", "PMI_RANK"),
        ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ],
)
def test_several_processes_are_refused(size: str, rank: str, clean: pytest.MonkeyPatch) -> None:
    clean.setenv(size, "2")
    clean.setenv(rank, "0")
    with pytest.raises(ExciseError, match=f"{size}=2 says that several processes.*: unset {size} {rank}"):
        mend()


def test_a_launcher_that_starts_fewer_processes_than_asked_is_noticed(clean: pytest.MonkeyPatch) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one, with these variables."""
    for name in ("WORLD_SIZE", "MASTER_PORT"):
        clean.delenv(name, raising=False)
    clean.setenv("ACCELERATE_USE_CPU", "True")
    mend()
    clean.setenv("ACCELERATE_USE_CPU", "True")
    clean.setenv("MASTER_PORT", "29500")
    with pytest.raises(ExciseError, match=r"has started one \(MASTER_PORT without WORLD_SIZE\)"):
        mend()


SHOWN = """
import os, sys
from prune.console.environment import hide_bars
hide_bars()
from tqdm import tqdm
for _ in tqdm(range(3)): pass
"""


@pytest.mark.parametrize(
    ("arguments", "environment", "shown"),
    [
        ([], {}, True),
        (["-q"], {}, False),
        (["--quiet"], {}, False),
        ([], {"TORCHELASTIC_RUN_ID": "run", "RANK": "0"}, True),
        ([], {"TORCHELASTIC_RUN_ID": "run", "RANK": "1"}, False),
        ([], {"RANK": "1"}, True),
    ],
)
def test_bars_are_of_one_process(arguments: list[str], environment: dict[str, str], shown: bool) -> None:
    command = [sys.executable, "-c", SHOWN, *arguments]
    inherited = {key: value for key, value in os.environ.items() if key not in ("RANK", "TQDM_DISABLE")}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=True, env=inherited | environment
    )
    assert bool(done.stderr) == shown


@pytest.mark.parametrize(("said", "expected"), [(None, "1"), ("0", "0")])
def test_large_pages_unless_the_user_says_otherwise(
    said: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {} if said is None else {LARGE_PAGES: said})
    use_large_pages()
    assert os.environ == {LARGE_PAGES: expected}


def test_left_over_variables_are_dropped(clean: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process of one is a launcher's too, and fine; a batch of Slurm that runs one step names all its
    tasks.
    """
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
    """It does not hang, its numbers are those of a plain one, and every line on stderr is a note of ours:
    none of a library.

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
