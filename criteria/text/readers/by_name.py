"""Which reader a file takes: by its first bytes, its suffix and the key of the recipe it stands under."""

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
POINTER = b"version https://git-lfs.github.com/spec/"
FIRST = 2**16  # bytes of a file that tell how its JSON is written


def files_of(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The file itself, or the files of a folder that end so (.gz may follow), in the order of their names."""
    if not path.is_dir():
        return [path]
    try:
        found = [file for file in _below(path) if _suffix(file) in suffixes and file.is_file()]
    except OSError as error:
        raise ExciseError(f"{error.filename or path}: {error.strerror or error}") from error
    named = {file.relative_to(path).parts: file for file in found}
    shown = sorted(parts for parts in named if not any(part.startswith(".") for part in parts))
    if not shown:
        raise ExciseError(f"{path}: no file in this folder ends in {', '.join(suffixes)} (.gz may follow)")
    return [named[parts] for parts in shown]


def _below(folder: Path) -> Iterator[Path]:
    """All files of a folder; links to folders are followed, each folder once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        if os.path.realpath(place) in seen:
            folders.clear()
        else:
            seen.add(os.path.realpath(place))
            yield from (Path(place) / file for file in files)


def _raise(error: OSError) -> NoReturn:
    raise error


def reader(path: Path, text_of: TextOf, separator: str = "", rows: bool = False) -> Reader:
    """The reader of a file. rows: it stands under a key for rows, whatever its name says."""
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
    """Refuses what stands for a file that was not fetched, and what no text begins with."""
    data = Data(path)
    start = data.at(0, FIRST)
    data.close()
    if start.startswith(POINTER):
        raise ExciseError(f"{path}: only a pointer of Git LFS; fetch the file itself (git lfs pull)")
    if plain and b"\0" in start:
        raise ExciseError(
            f"{path}: no text, it holds a zero byte (at byte {start.index(0)}); is it packed, or in UTF-16?"
        )


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _is_lines(path: Path) -> bool:
    """Whether every line is a value; else the file is one array, or its values go over several lines."""
    data = Data(path)
    start = data.at(0, FIRST).decode("utf-8", errors="replace").lstrip()
    data.close()
    if not start.startswith(("[", "{")):
        return True  # texts a line, or nothing that is JSON: said with the line's number
    line, _, rest = start.partition("\n")
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        # What goes on in the next line breaks off at the end of this one; an error before it is an error.
        return start[0] == "{" and (error.pos < len(line.rstrip()) or not rest)
    except (ValueError, RecursionError):
        return start[0] == "{"
    return start[0] == "{" or bool(rest.strip())
