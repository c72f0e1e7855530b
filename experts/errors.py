"""The one exception that reaches a user: one line that names the problem and the way out."""

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


class SettingError(ExciseError):
    """About one setting, whose name begins the message: an argument in Python, a key in a recipe."""


@contextmanager
def settings_of(table: str) -> Iterator[None]:
    """Name the table of the recipe that a setting is in, where the message names the setting alone."""
    try:
        yield
    except SettingError as error:
        raise ExciseError(f"{table}.{error}") from error


def one_line(error: BaseException) -> str:
    """The first line of another library's message, with the next one where the first only announces it."""
    stripped = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in stripped if line] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


@contextmanager
def naming(path: Path, instead_of: Path | None = None) -> Iterator[None]:
    """Add `path` to an OSError that names no file, as ENOSPC does.

    Args:
        path: the file that the block is about
        instead_of: a temporary name, for which `path` is reported
    """
    try:
        yield
    except OSError as error:
        is_temporary = instead_of is not None and str(error.filename).startswith(str(instead_of))
        if error.filename is None or is_temporary:
            error.filename = str(path)
        raise
    except Exception as error:
        of_system = hidden_os_error(error)
        if of_system is None:
            raise
        of_system.filename = str(path)
        raise of_system from error


def hidden_os_error(error: BaseException) -> OSError | None:
    """The system's own error, where a library in Rust (safetensors) or C++ (torch's files) wraps it."""
    if coded := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(coded[1])
        return OSError(number, os.strerror(number))
    message = one_line(error)
    if isinstance(error, RuntimeError) and TORCH_FILE.search(message) and "Reader" not in message:
        return OSError(f"cannot be written to its end ({message}); is the disk full?")
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or in main memory.

    torch has a class for it on GPUs only. It is known here by its name: the caller may not have loaded torch.
    """
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if "MemoryError" in kinds or "OutOfMemoryError" in kinds:
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None


def is_own_mistake(error: BaseException) -> bool:
    """Whether the error arose in a line of Excise and is of a kind that only a wrong line raises."""
    calls = frames(error)
    return isinstance(error, MISTAKES) and bool(calls) and is_own(calls[-1][0])


def let_through(error: BaseException) -> None:
    """Raise again what a handler of foreign errors must not explain as one of them.

    Called where whatever a library or a checkpoint raises is caught. What passes: a mistake of ours, memory
    that ran out, a missing library, and what is a clear line already.
    """
    is_clear = isinstance(error, ModuleNotFoundError | ExciseError)
    if is_clear or is_own_mistake(error) or is_out_of_memory(error):
        raise error


def frames(error: BaseException) -> list[tuple[str, int, str]]:
    """File, line and function of every call that the error passed through, the innermost last."""
    calls = traceback.walk_tb(error.__traceback__)
    return [(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in calls]


def is_own(file: str) -> bool:
    """Whether a source file is one of Excise's packages."""
    return any(package in Path(file).parents for package in PACKAGES)
