"""Notes to the user during long work: a line on stderr beside the progress bars, and silent where those are."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

_said: list[set[str]] = []


def tell(note: str) -> None:
    """Prints `note: …`, unless progress bars are off (--quiet) or it was told before in the same `once`."""
    if _said:
        if note in _said[0]:
            return
        _said[0].add(note)
    if not os.environ.get("TQDM_DISABLE"):
        tqdm.write(f"note: {note}", file=sys.stderr)


@contextmanager
def once() -> Iterator[None]:
    """Work whose parts may have the same to say: inside the (outermost) block a note is told once."""
    _said.append(set())
    try:
        yield
    finally:
        _said.pop()
