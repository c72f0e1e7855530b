"""What an exception means to a user: one line by its kind, with the way out."""

import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from experts.errors import (
    PACKAGES,
    ROOT,
    ExciseError,
    frames,
    hidden_os_error,
    is_out_of_memory,
    is_own,
    is_own_mistake,
)
from experts.ranks import ended_ranks

LONGEST = 300  # characters of a library's message
INTERRUPTED = "interrupted; the same command resumes from what was finished"
STOPPED = (
    signal.SIGTERM
)  # an argument of KeyboardInterrupt: what schedulers send, and torchrun when a rank has ended
REPORT = "please report it with the output of --debug"
# Packages whose exceptions speak of a connection, by name: none need be loaded. And other errors of the hub.
NETWORK = re.compile(
    "aiohttp|anyio|fsspec|h11|h2|hf_xet|http|httpcore2?|httpx2?|huggingface_hub|requests|socket|ssl|urllib3?",
)
NOT_THE_NETWORK = ("StrictDataclass", "HFValidation", "HfUri", "Safetensors", "NotASafetensors", "DDUF")
WAYS = {
    errno.EDQUOT: "raise the quota, or choose another place",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOSPC: "free some space, or choose another place",
    errno.EROFS: "choose another place",
}


def explained(error: BaseException) -> str:
    """Return the line, without `excise: `.

    What is not known by its kind is an error of Excise, and says so.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ExciseError):
        return str(error)
    interrupted = isinstance(error, KeyboardInterrupt)
    if interrupted and STOPPED not in error.args:  # by Ctrl-C all ranks are, and some end before this one
        return INTERRUPTED
    if ended := ended_ranks(patient=not interrupted):
        return f"{ended} has ended, and all stop with it; the same command resumes from what was finished"
    if interrupted:
        return INTERRUPTED
    if is_own_mistake(error):
        return _unforeseen(error)
    kinds = (_memory, _network, _system, _module, _text, _unforeseen)
    return next(line for kind in kinds if (line := kind(error)))


def _memory(error: BaseException) -> str:
    if not is_out_of_memory(error) and not (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return ""
    return f"out of memory ({_said(error)}); use shorter windows, a smaller batch or dtype"


def _network(error: BaseException) -> str:
    """Errors of libraries that fetch, anywhere in the chain of causes, and the system's own."""
    for cause in _chain(error):
        if _is_network(cause):
            failed = f"the hub or the network failed ({type(cause).__name__}: {_said(cause)})"
            return f"{failed}; run the same command again, or download first and name the local folder"
    return ""


def _is_network(error: BaseException) -> bool:
    kind = type(error)
    if isinstance(error, ConnectionError | TimeoutError):
        return error.filename is None  # with a name it is a file system's
    if kind.__module__.startswith("huggingface_hub") and kind.__name__.startswith(NOT_THE_NETWORK):
        return False
    return any(NETWORK.fullmatch(base.__module__.partition(".")[0]) for base in kind.__mro__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        context = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or context


def _system(error: BaseException) -> str:
    """Files, disks, limits: `name: what the system says`."""
    known = error if isinstance(error, OSError) else hidden_os_error(error)
    if known is None:
        return ""
    number = known.errno if isinstance(known.errno, int) and known.errno > 0 else None
    text = known.strerror or _said(known)
    if number and "[errno " in text:  # pyarrow's own words around the system's
        text = os.strerror(number)
    way = f"; {WAYS[number]}" if number in WAYS else ""
    if "temporary directory" in text:
        way = "; TMPDIR names a folder for temporary files"
    if known.filename is None:
        return f"input or output: {text}{way}" if number else f"{text}{way}"
    return f"{_name(known.filename)}: {text}{way}"


def _name(filename: object) -> str:
    if isinstance(filename, bytes):
        return os.fsdecode(filename)
    return f"file {filename}" if isinstance(filename, int) else str(filename)


def _module(error: BaseException) -> str:
    if not isinstance(error, ImportError):
        return ""
    name = (error.name or "").partition(".")[0]
    if name in {package.name for package in PACKAGES}:
        if error.path and not is_own(error.path):
            hidden = f"another package called {name} hides Excise's own ({error.path})"
            return f"{hidden}; use an environment of its own"
        return _unforeseen(error)
    again = "or install Excise again: pip install -e . -c constraints.txt"
    if isinstance(error, ModuleNotFoundError) and name:
        return f"the Python module {name} is not installed; pip install {name}, {again}"
    return f"a Python module is missing or does not fit ({_said(error)}); install it, {again}"


def _text(error: BaseException) -> str:
    if isinstance(error, UnicodeError):
        return f"a text or a name is not valid Unicode ({_said(error)}); convert it to UTF-8"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply to be read ({_said(error)}); is a file damaged?"
    return ""


def _unforeseen(error: BaseException) -> str:
    """Not known by kind: where, and whom to tell. A library that failed is named; else the fault is ours."""
    passed = frames(error)
    own = [(file, line) for file, line, _ in passed if is_own(file)]
    place = f" at {Path(own[-1][0]).relative_to(ROOT)}:{own[-1][1]}" if own else ""
    message = f": {_said(error)}" if str(error) else ""
    summary = f"{type(error).__name__}{place}{message}"
    library = _library(passed[-1][0]) if passed else ""
    if library and any(function == "<module>" and _library(file) for file, _, function in passed):
        why = f"{type(error).__name__}{message}"
        return f"{library} cannot be loaded ({why}); is a variable that it reads set wrongly?"
    if library and not is_own_mistake(error):
        failed = f"{library} failed in a way that Excise does not know ({summary})"
        return f"{failed}; if the input is sound, {REPORT}"
    return f"an error of Excise itself ({summary}); {REPORT}"


def _library(file: str) -> str:
    """The installed package that a source file is part of; empty for our own files and Python's."""
    parts = Path(file).parts
    if is_own(file) or "site-packages" not in parts[:-1]:
        return ""
    return Path(parts[parts.index("site-packages") + 1]).stem


def _said(error: BaseException) -> str:
    whole = str(error)
    if isinstance(error, OSError) and error.errno is None:  # then str() shows the file alone
        whole = " ".join(map(str, error.args))
    text = " ".join(whole.split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
