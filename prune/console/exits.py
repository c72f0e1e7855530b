"""How a command ends: one clear line and an exit code for every error, Ctrl-C and closed pipe."""

import io
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import FrameType
from typing import IO, Any, NoReturn

import typer

from experts.errors import ExciseError
from prune.console.environment import mend
from prune.console.explain import explained
from prune.console.messages import listening, printable

STOPPING = (signal.SIGINT, signal.SIGTERM)
_interruptions: list[int] = []  # of these that came


def guarded(work: Callable[[], int], quiet: bool, debug: bool) -> None:
    """Run a command; one clear line and exit 1 for whatever ends it early.

    Args:
        work: returns the exit code.
        quiet: show no notes and no progress bars.
        debug: show the traceback instead of the line.
    """
    for number in STOPPING:  # from here on exceptions that work can clean up after
        signal.signal(number, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # formulas are not Latin-1
    with listening(quiet, debug):
        raise typer.Exit(_ended(work, debug))


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    _interruptions.append(number)
    raise KeyboardInterrupt(number)


def _ended(work: Callable[[], int], debug: bool) -> int:
    try:
        mend()
        code = work()
        sys.stdout.flush()  # here, where a closed pipe is understood, and not at exit
    except (typer.Exit, typer.BadParameter):
        raise
    except BaseException as error:  # also a library's SystemExit, and panics of those written in Rust
        if isinstance(error, BrokenPipeError) and (_closed(sys.stdout) or _closed(sys.stderr)):
            return _unread()
        if debug:
            raise
        with _undisturbed():  # torchrun ends all ranks when one is killed: in the middle of this one's line
            _complain(f"excise: {printable(explained(_meant(error)))}")
        return 1
    return code


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hear no signals; afterwards they interrupt again, whatever hangs on the way out."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _meant(error: BaseException) -> BaseException:
    """A library that is interrupted while it is being imported may raise what it likes."""
    hidden = _interruptions and not isinstance(error, ExciseError)
    return KeyboardInterrupt(_interruptions[0]) if hidden else error


def _complain(line: str) -> None:
    """On stderr, if anybody reads it. What stdout could not take must not be tried again at exit."""
    with suppress(OSError, ValueError):
        _end_bars()
        print(line, file=sys.stderr)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _to_nowhere(sys.stdout)


def _end_bars() -> None:
    """An error leaves bars of libraries open, in the middle of a line."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()


def _unread() -> int:
    """`| head` has seen enough. Results alone go to stdout, so they are made; stderr breaks in the middle."""
    unfinished = _closed(sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if _closed(stream):
            _to_nowhere(stream)
    return 1 if unfinished else 0


def _closed(stream: IO[str]) -> bool:
    """Whether nobody reads a pipe any more."""
    with suppress(OSError, ValueError, AttributeError):  # a stream in memory has no descriptor
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False


def _to_nowhere(stream: IO[str]) -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def waiting(what: str, quiet: bool) -> AbstractContextManager[Any]:
    """Show a spinner on a terminal for as long as the block lasts."""
    from rich.console import Console

    console = Console(stderr=True)
    return nullcontext() if quiet or not console.is_terminal else console.status(what)
