"""The one exception that reaches a user: one line that names the problem and the way out. No torch."""

import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
PACKAGES = tuple(ROOT / name for name in ("experts", "criteria", "validate", "finetune", "prune"))
TORCH_FILE = re.compile("inline_container|PytorchStreamWriter")
NO_MEMORY = re.compile(r"allocate memory|out of memory|not enough memory|bad_alloc|ALLOC_FAILED")
MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
)


class ExciseError(Exception):
    """An error a user can act on. The command line prints the message and exits 1."""


def one_line(error: BaseException) -> str:
    """The first line of what another library said, and the next one where that is what the first announces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


@contextmanager
def naming(path: Path, instead_of: Path | None = None) -> Iterator[None]:
    """A full disk does not say where it is full: an OSError of the block carries the file it was about.

    instead_of: a temporary name that `path` is reported for.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or (instead_of and str(error.filename).startswith(str(instead_of))):
            error.filename = str(path)
        raise
    except Exception as error:
        if (found := hidden_os_error(error)) is None:
            raise
        found.filename = str(path)
        raise found from error


def hidden_os_error(error: BaseException) -> OSError | None:
    """What the system said, where a library in Rust (safetensors) or C++ (torch's files) wraps it."""
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    said = one_line(error)
    if isinstance(error, RuntimeError) and TORCH_FILE.search(said) and "Reader" not in said:
        return OSError(f"cannot be written to its end ({said}); is the disk full?")
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """torch has a class for it on GPUs only. By name: whoever asks may not have loaded torch."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if "MemoryError" in kinds or "OutOfMemoryError" in kinds:
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None


def is_own_mistake(error: BaseException) -> bool:
    """Whether the error arose in a line of Excise and is of a kind that only a wrong line raises."""
    passed = frames(error)
    return isinstance(error, MISTAKES) and bool(passed) and is_own(passed[-1][0])


def let_through(error: BaseException) -> None:
    """In a handler of whatever a library or a checkpoint raises: raises again what says nothing of them.

    That is a mistake of ours, memory that ran out, a missing library, and what is a clear line already.
    """
    told = isinstance(error, ModuleNotFoundError | ExciseError)
    if told or is_own_mistake(error) or is_out_of_memory(error):
        raise error


def frames(error: BaseException) -> list[tuple[str, int, str]]:
    """File, line and function of every call that the error passed through, the innermost last."""
    walked = traceback.walk_tb(error.__traceback__)
    return [(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in walked]


def is_own(file: str) -> bool:
    """Whether a source file is one of Excise's packages."""
    return any(package in Path(file).parents for package in PACKAGES)
