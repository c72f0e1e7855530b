"""One file of plain text as two: what the criterion sees, and what its plan is tested on.

The file is cut into passages, between paragraphs where there are blank lines. Every third one is held out, so
both parts hold text from everywhere in the file, and no passage is in both. A passage counts as a document.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from criteria.text.sources import Source
from experts.errors import ExciseError
from experts.files import replacing

PASSAGES = 90  # a third of them is held out, and a test wants 20 documents
SHORTEST, LONGEST = 500, 20_000  # bytes of a passage
HELD_OUT = 3  # every third passage
BREAK = "\n\n\n"  # between passages; inside one a blank line is single
SEPARATOR = r"(?<=\n\n\n)"
ROWS = re.compile(r"\.(jsonl?|ndjson|parquet|csv|tsv)(\.gz)?$|\.gz$", re.IGNORECASE)


def check_text(file: Path) -> None:
    """Refuse what is no file of plain text.

    Raises:
        ExciseError: a folder, a file of rows, too short, or nothing.
    """
    if not file.exists():
        raise ExciseError(f"--text {file}: No such file or directory")
    if file.is_dir() or ROWS.search(file.name):
        kind = "a folder" if file.is_dir() else "a file of rows"
        raise ExciseError(
            f"--text {file}: is {kind}; --text takes one file of plain text, and a recipe takes the rest "
            "(excise init MODEL writes one)"
        )
    with _as_utf8(file), file.open(encoding="utf-8") as lines:
        count = sum(1 for _ in islice(passages(lines, _size(file)), HELD_OUT))
    _check_count(file, count)


def divided(file: Path, folder: Path) -> tuple[Source, Source]:
    """Write the two parts of a file into a folder.

    Args:
        file: UTF-8 text.
        folder: gets calibration.txt and held-out.txt.

    Returns:
        The sources of calibration and validation.

    Raises:
        ExciseError: the file is too short for two parts, or not UTF-8.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seen, held_out = folder / "calibration.txt", folder / "held-out.txt"
    try:
        with _as_utf8(file):
            _write(file, seen, held_out)
    except ExciseError:
        with suppress(OSError):
            folder.rmdir()
        raise
    return _source(seen), _source(held_out)


@contextmanager
def _as_utf8(file: Path) -> Iterator[None]:
    """Refuse another encoding in one line."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ExciseError(f"{file}: not UTF-8 text ({error.reason}); convert it to UTF-8") from error


def _size(file: Path) -> int:
    """Bytes of a passage."""
    return min(LONGEST, max(SHORTEST, file.stat().st_size // PASSAGES))


def _check_count(file: Path, count: int) -> None:
    if count < HELD_OUT:
        raise ExciseError(
            f"{file}: has {count} passages of {SHORTEST} bytes, and two parts take at least {HELD_OUT}; "
            "take a longer text"
        )


def _write(file: Path, seen: Path, held_out: Path) -> None:
    size, count = _size(file), 0
    with replacing(seen) as fresh, replacing(held_out) as fresh_held_out:
        with (
            fresh.open("w", encoding="utf-8") as first,
            fresh_held_out.open("w", encoding="utf-8") as second,
            file.open(encoding="utf-8") as lines,
        ):
            for count, passage in enumerate(passages(lines, size), 1):
                (first if count % HELD_OUT else second).write(passage + BREAK)
        _check_count(file, count)


def passages(lines: Iterable[str], size: int) -> Iterator[str]:
    """Passages of at least `size` bytes, the last one excepted.

    A passage ends between paragraphs; inside one that goes on for four sizes it ends with a line.
    """
    passage: list[str] = []
    length = 0
    for line in lines:
        blank = not line.strip()
        if length >= (size if blank else 4 * size):
            yield "\n".join(passage).rstrip("\n")
            passage, length = [], 0
        if not blank:
            passage.append(line.rstrip("\n"))
            length += len(line.encode())
        elif passage and passage[-1]:
            passage.append("")
    if length:
        yield "\n".join(passage).rstrip("\n")


def _source(file: Path) -> Source:
    return Source(text=(file.absolute(),), separator=SEPARATOR)
