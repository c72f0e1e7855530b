"""The one exception that reaches a user: its message is one clear line that names the problem and the way out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ExciseError(Exception):
    """An error a user can act on. The command line prints the message and exits 1."""


def one_line(error: BaseException) -> str:
    """The first line of what another library said."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A full disk says that it is full, but not where: an OSError from inside the block carries the file it was about."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
