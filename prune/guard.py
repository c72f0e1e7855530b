"""How a command ends: one clear line and an exit code for every error, Ctrl-C and closed pipe; and what is shown while libraries load."""

import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import typer

from experts.errors import ExciseError


def guarded(work: Callable[[], int], quiet: bool, debug: bool) -> None:
    """Runs a command; one clear line and exit 1 for an error or Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on Ctrl-C is an exception that work can clean up after
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # formulas are not Latin-1
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if quiet:
        os.environ["TQDM_DISABLE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    try:
        code = work()
        sys.stdout.flush()  # here, where a closed pipe is understood, and not at exit
    except ExciseError as error:
        if debug:
            raise
        print(f"excise: {printable(str(error))}", file=sys.stderr)
        code = 1
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if debug:
            raise
        print(f"excise: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        code = 1
    except (RuntimeError, MemoryError) as error:
        from experts.memory import is_out_of_memory

        if debug or not is_out_of_memory(error):
            raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"excise: out of memory ({said}); use shorter windows, a smaller batch or dtype", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        if debug:
            raise
        print("excise: interrupted; the same command resumes after the last finished stage", file=sys.stderr)
        code = 1
    raise typer.Exit(code)


def printable(text: str) -> str:
    """One line without control characters: names from a checkpoint may hold line ends and what a terminal obeys."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def waiting(what: str, quiet: bool) -> AbstractContextManager[Any]:
    """A spinner on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    return nullcontext() if quiet or not console.is_terminal else console.status(what)
