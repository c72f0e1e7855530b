"""Which reader a file takes: by its first bytes, its suffix and the key of the recipe that names it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from criteria.text.readers.json_lines import JsonLines
from criteria.text.readers.json_values import JsonValues
from criteria.text.readers.parquet import Parquet
from criteria.text.readers.pieces import Reader, TextOf
from criteria.text.readers.plain import PlainText
from criteria.text.readers.storage import PARQUET, Data, head
from experts.errors import ExciseError

ROWS = (".jsonl", ".ndjson", ".json", ".parquet")
PLAIN = (".txt", ".text", ".md", ".rst")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
FIRST_BYTES = 2**16  # of a file, which tell how its JSON is written


def files_of(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return a file itself, or the files of a folder, in the order of their names.

    Args:
        path: of a file or folder
        suffixes: how the files of a folder end, lower case; .gz may follow

    Raises:
        ExciseError: the folder cannot be read, or has no such file. Hidden files and folders do not count.
    """
    if not path.is_dir():
        return [path]
    try:
        files = [file for file in _below(path) if _suffix(file) in suffixes and file.is_file()]
    except OSError as error:
        raise ExciseError(f"{error.filename or path}: {error.strerror or error}") from error
    files_by_parts = {file.relative_to(path).parts: file for file in files}
    shown = sorted(parts for parts in files_by_parts if not _hidden(parts))
    if not shown:
        raise ExciseError(f"{path}: no file in this folder ends in {', '.join(suffixes)} (.gz may follow)")
    return [files_by_parts[parts] for parts in shown]


def _hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith(".") for part in parts)


def _below(folder: Path) -> Iterator[Path]:
    """All files of a folder; links to folders are followed, each folder once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        real_path = os.path.realpath(place)
        if real_path in seen:
            folders.clear()
        else:
            seen.add(real_path)
            yield from (Path(place) / file for file in files)


def _raise(error: OSError) -> NoReturn:
    raise error


def reader(path: Path, text_of: TextOf, separator: str = "", rows: bool = False) -> Reader:
    """Return the reader of a file.

    Args:
        path: of the file
        text_of: the text of its rows
        separator: regular expression that starts a new document in plain text; empty for none
        rows: the recipe names it under a key for rows, whatever its suffix

    Raises:
        ExciseError: the file is unreadable or no text.
    """
    if head(path) == PARQUET:
        return Parquet(path, text_of)
    plain = not rows and _suffix(path) not in ROWS
    _check_is_text(path, plain)
    if plain:
        text_of.refuse_prose(str(path))
        return PlainText(path, separator)
    if _suffix(path) == ".parquet":
        raise ExciseError(f"{path}: not a parquet file (it does not begin with PAR1); get or write it again")
    return JsonLines(path, text_of) if _is_lines(path) else JsonValues(path, text_of)


def _check_is_text(path: Path, plain: bool) -> None:
    """Refuse the pointer to a file that was not fetched, and what no text begins with."""
    start = _first_bytes(path)
    if start.startswith(LFS_POINTER):
        raise ExciseError(f"{path}: only a pointer of Git LFS; fetch the file itself (git lfs pull)")
    if plain and b"\0" in start:
        raise ExciseError(
            f"{path}: no text, it holds a zero byte (at byte {start.index(0)}); is it packed, or in UTF-16?"
        )


def _first_bytes(path: Path) -> bytes:
    data = Data(path)
    start = data.at(0, FIRST_BYTES)
    data.close()
    return start


def _suffix(path: Path) -> str:
    """The suffix of a file, lower case and without .gz."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _is_lines(path: Path) -> bool:
    """Whether every line is a value. Else the file is one array, or its values go over several lines."""
    start = _first_bytes(path).decode("utf-8", errors="replace").lstrip()
    if not start.startswith(("[", "{")):
        return True  # a string per line, or no JSON: the error names the line
    line, _, rest = start.partition("\n")
    begins_object = start[0] == "{"
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        # A value that goes on in the next line breaks off at the end of this one.
        breaks_off = error.pos >= len(line.rstrip())
        return begins_object and (not breaks_off or not rest)
    except (ValueError, RecursionError):
        return begins_object
    return begins_object or bool(rest.strip())
