"""Every exception ends a command in one line: told by kind, and injected around every outside call of the
real commands.
"""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from typer.testing import CliRunner

from experts import loading, pretrained
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError, let_through
from experts.plan import Plan
from prune.console.cli import app
from prune.console.explain import explained
from prune.console.messages import printable
from tests.support import tiny
from tests.support.play import Play

ROOT = Path(__file__).resolve().parents[3]


# What an exception means.


class ConnectError(Exception):
    """As the hub's client raises it: no OSError, and known by its module alone."""

    __module__ = "httpx2"


class AdjectiveError(ConnectError):
    __module__ = "somewhere.else"


def raised(error: BaseException) -> BaseException:
    """The same with a traceback through a line of this file."""
    with pytest.raises(type(error)) as found:
        raise error
    return found.value


def caused(error: Exception, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


TOLD: list[tuple[BaseException, str]] = [
    (ExciseError("a: is wrong"), "a: is wrong"),
    (KeyboardInterrupt(), "interrupted; the same command resumes from what was finished"),
    (
        OSError(errno.ENOSPC, "No space left on device", "out/x"),
        "out/x: No space left on device; free some space",
    ),
    (OSError(errno.ENOSPC, "No space left on device"), "input or output: No space left on device"),
    (
        OSError(28, "Error writing bytes to file. Detail: [errno 28] No space left on device"),
        "No space left on device; free",
    ),
    (
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
        "found in ['/tmp']; TMPDIR names",
    ),
    (PermissionError(errno.EACCES, "Permission denied", b"out/x"), "out/x: Permission denied"),
    (OSError("We could not connect to the moon"), "We could not connect to the moon"),
    (OSError(), "OSError"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
    (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "No space left on device",
    ),
    (
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 534"),
        "is the disk full?",
    ),
    (MemoryError(), "out of memory (MemoryError)"),
    (RuntimeError("CUDA error: out of memory"), "out of memory (CUDA error"),
    (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        "use shorter windows",
    ),
    (
        ConnectError("name resolution"),
        "the hub or the network failed (ConnectError: name resolution); run the same command again",
    ),
    (AdjectiveError("lost"), "the hub or the network failed"),
    (
        caused(RuntimeError("data processing"), ConnectError("lost")),
        "the hub or the network failed (ConnectError: lost)",
    ),
    (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "the hub or the network failed"),
    (TimeoutError("timed out"), "the hub or the network failed"),
    (TimeoutError(errno.ETIMEDOUT, "Connection timed out", "/mnt/x"), "/mnt/x: Connection timed out"),
    (
        ModuleNotFoundError("No module named 'sentencepiece'", name="sentencepiece"),
        "pip install sentencepiece",
    ),
    (
        ImportError("\nLlamaTokenizer requires the protobuf library\nbut it was not found"),
        "LlamaTokenizer requires the protobuf",
    ),
    (
        ImportError("cannot import name 'audit'", name="validate", path="/other/validate.py"),
        "another package called validate hides",
    ),
    (
        ImportError("cannot import name 'audit'", name="validate", path=str(ROOT / "validate" / "x.py")),
        "an error of Excise itself",
    ),
    (
        UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates not allowed"),
        "not valid Unicode ('utf-8' codec can't encode",
    ),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "convert it to UTF-8"),
    (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    (ExceptionGroup("several", [ExciseError("a: is wrong")]), "a: is wrong"),
    (
        Exception("data did not match any variant of untagged enum ModelWrapper"),
        "an error of Excise itself (Exception: data",
    ),
    (KeyError("x"), "an error of Excise itself (KeyError: 'x'); please report it with the output of --debug"),
    (SystemExit(2), "an error of Excise itself (SystemExit: 2)"),
    (AssertionError(), "an error of Excise itself (AssertionError)"),
]


@pytest.mark.parametrize(
    ("error", "line"), TOLD, ids=[f"{type(error).__name__}-{i}" for i, (error, _) in enumerate(TOLD)]
)
def test_kinds(error: BaseException, line: str) -> None:
    assert line in explained(error)


def test_the_place_of_a_mistake_and_the_library_that_failed() -> None:
    """Our innermost line is named.

    A library that raised in the end is named too; one that cannot even be imported differently.
    """
    with pytest.raises(AttributeError) as caught:
        Plan(8, None).counts  # type: ignore[arg-type]  # noqa: B018
    assert re.search(
        r"an error of Excise itself \(AttributeError at experts/plan\.py:\d+: ", explained(caught.value)
    )
    with pytest.raises(ValueError, match="text input") as failed:
        tiny.tokenizer()(object())
    assert explained(failed.value).startswith(
        "transformers failed in a way that Excise does not know (ValueError: text input"
    )
    code = (
        "import sys; sys.argv = ['excise', 'export', 'demo', 'none.json', "
        "'out']; from prune.entry import main; main()"
    )
    environment = {**os.environ, "TQDM_MININTERVAL": "soon", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "excise: tqdm cannot be loaded (ValueError: could not convert string to float: 'soon')"
    )
    assert done.stderr.count("\n") == 1


TEXT = st.text(st.characters(), max_size=400)
KINDS: list[Callable[[str], BaseException]] = [
    ExciseError,
    OSError,
    RuntimeError,
    Exception,
    ImportError,
    ConnectError,
    SystemExit,
    lambda text: OSError(errno.EIO, text, text),
    lambda text: OSError(errno.EIO, text, 3),
    lambda text: ModuleNotFoundError(text, name=text),
    lambda text: UnicodeEncodeError("utf-8", text or "a", 0, 1, text),
    lambda text: BaseExceptionGroup(text, [BaseExceptionGroup(text, [KeyError(text)])]),
]


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(KINDS), text=TEXT, traced=st.booleans())
def test_whatever_an_exception_says_is_one_printable_line(
    kind: Callable[[str], BaseException], text: str, traced: bool
) -> None:
    error = kind(text)
    line = printable(explained(raised(error) if traced else error))
    assert line.isprintable()
    assert "\n" not in line
    if not isinstance(error, ExciseError):
        assert line.strip()


# Faults around every outside call of the real commands.


class Rows(list[dict[str, str]]):
    def take(self, count: int) -> "Rows":
        return Rows(self[:count])


@pytest.fixture(autouse=True)
def _dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set from the hub, without the hub."""
    import datasets

    rows, load = (
        Rows({"text": f"{i} sheep, {i**2} dreams and {i**3} stars"} for i in range(40)),
        datasets.load_dataset,
    )
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, *a, **b: rows if path == "owner/name" else load(path, *a, **b)
    )


FAULTS: list[Callable[[], BaseException]] = [
    lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    lambda: RuntimeError("something in C++ went wrong\nwith a long report\n" * 20),
    lambda: Exception("something in Rust went wrong"),
    lambda: OSError("only words"),
    lambda: MemoryError(),
    lambda: UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates not allowed"),
    lambda: ConnectError("the server went away"),
    lambda: ImportError("needs another library"),
    lambda: OSError(),
    lambda: SafetensorError("I/O error: Input/output error (os error 5)"),
    lambda: RecursionError("maximum recursion depth exceeded"),
    lambda: SystemExit(0),
    lambda: KeyError("x"),
]
# Command -> calls that fail in turn, in one folder: before and after a fault the same command does what is
# left to do.
SITES: dict[str, list[list[str]]] = {
    "prune": [
        ["transformers.AutoConfig.from_pretrained"],
        ["transformers.AutoModelForCausalLM.from_pretrained"],
        ["transformers.AutoTokenizer.from_pretrained"],
        [
            "transformers.PreTrainedTokenizerBase.__call__",
            "transformers.models.olmoe.OlmoeForCausalLM.forward",
        ],
        ["platform.platform", "yaml.safe_dump", "json.dumps"],
        ["criteria.statistics.safe_open", "safetensors.numpy.save"],
        ["os.replace"],
        ["shutil.disk_usage", "shutil.copyfile", "os.preadv", "os.pwrite", "os.fsync", "os.rename"],
    ],
    "dataset": [["datasets.load_dataset"]],
    "tasks": [
        [
            "lm_eval.tasks.TaskManager.load",
            "lm_eval.models.huggingface.HFLM.__init__",
            "validate.tasks.evaluate",
            "validate.task_answers.sweep",
        ]
    ],
    "export": [["os.pwrite", "json.dumps"]],
    "effects.csv": [["psutil.virtual_memory", "os.replace", "pyarrow.csv.write_csv"]],
    "effects.parquet": [["pyarrow.parquet.write_table"]],
    "inspect": [["prune.inspect.from_fraction"]],
    "finetune": [
        [
            "transformers.Trainer.train",
            "torch.save",
            "peft.PeftModel.save_pretrained",
            "peft.PeftModel.load_adapter",
        ],
        ["prune.checkpoint.stored_weights.save_file", "shutil.copytree"],
    ],
    "disk": [["os.posix_fallocate"]],
}
CASES = [(name, sites) for name, groups in SITES.items() for sites in groups]


def check_one_line(done: Any) -> str:
    """Exit 1, and one line that is not empty; nothing on stdout."""
    lines = [
        line for line in done.stderr.splitlines() if line.strip() and "%|" not in line
    ]  # no bars of libraries
    assert (done.exit_code, done.stdout, len(lines)) == (1, "", 1), done.output
    assert re.match(r"excise: \S", lines[0])
    return str(lines[0])


def check_nothing_half_written(out: Path) -> None:
    for config in out.rglob("config.json"):
        assert open_checkpoint(config.parent).tensors
    assert not [path for kind in ("*.new", "*.replaced", ".tmp*", ".*.partial") for path in out.rglob(kind)]


@pytest.mark.parametrize(("name", "sites"), CASES, ids=[f"{name}:{sites[0]}" for name, sites in CASES])
def test_a_fault_is_one_line_and_leaves_nothing_behind(
    name: str, sites: list[str], play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = play.command(name, tmp_path / "out")
    (tmp_path / "out").mkdir()
    for number, site in enumerate(sites, CASES.index((name, sites))):
        called = []

        def fail(
            *_: Any, site: str = site, called: list[str] = called, number: int = number, **__: Any
        ) -> Any:
            called.append(site)
            fault = FAULTS[number % len(FAULTS)]
            raise fault()

        with monkeypatch.context() as broken:
            broken.setattr(site, fail)
            done = CliRunner().invoke(app, command)
        assert called
        check_one_line(done)
        check_nothing_half_written(tmp_path / "out")
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("site", ["load_tokenizer", "load"])
def test_any_fault_of_a_model_or_its_tokenizer(
    fault: Callable[[], BaseException], site: str, play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise fault()

    auto = {"load": pretrained.AutoModelForCausalLM, "load_tokenizer": loading.AutoTokenizer}[site]
    monkeypatch.setattr(auto, "from_pretrained", fail)
    check_one_line(CliRunner().invoke(app, play.command("effects.csv", tmp_path)))


SPOKEN = [
    (MemoryError(), "out of memory (MemoryError)"),
    (
        ModuleNotFoundError("No module named 'sentencepiece'", name="sentencepiece"),
        "pip install sentencepiece",
    ),
    (KeyError("x"), "the tokenizer cannot read this text (KeyError: 'x')"),
]


@pytest.mark.parametrize(("fault", "line"), SPOKEN)
def test_what_says_nothing_of_the_input_is_not_blamed_on_it(
    fault: Exception, line: str, play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handlers of whatever a library raises let it through; a mistake in a line of ours too."""

    def fail(_: Any, text: str, **__: Any) -> Any:
        if text == "A text.":  # what is read to see whether the tokenizer reads at all
            return {"input_ids": [1]}
        raise fault

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.__call__", fail)
    assert line in check_one_line(CliRunner().invoke(app, play.command("prune", tmp_path)))
    with pytest.raises(AttributeError) as caught:
        Plan(8, None).counts  # type: ignore[arg-type]  # noqa: B018
    with pytest.raises(AttributeError):
        let_through(caught.value)
    let_through(fault) if isinstance(fault, KeyError) else None


def test_every_command_shows_the_traceback_with_debug(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of an error which became a line of our own."""

    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("the cause")

    for name in ("prune", "finetune", "export", "effects.csv", "inspect", "dataset"):
        with monkeypatch.context() as broken:
            broken.setattr("experts.disk.shards.read_header", fail)
            done = CliRunner().invoke(app, [*play.command(name, tmp_path), "--debug"])
            assert isinstance(done.exception, ValueError), done.output
    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", fail)
    done = CliRunner().invoke(app, [*play.command("effects.csv", tmp_path), "--debug"])
    assert isinstance(done.exception, ExciseError)
    assert isinstance(done.exception.__cause__, ValueError)
    for name in ("criteria", "inspect", "compare", "audit"):
        assert "--debug" in CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).stdout
