"""JSON from files that others wrote.

It is bounded in size and depth, has no name twice, and holds nothing that could not be written again.
"""

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from experts.errors import ExciseError

LARGEST_CONFIG = 2**24  # bytes; a thousand times what a config.json has
LARGEST_INDEX = 2**27  # bytes; an index of a million tensors, a tokenizer of a million tokens
DEEPEST = 100  # objects in objects; Python's own writers give up at some hundreds


def read_object(path: Path, missing: str, largest: int = LARGEST_CONFIG) -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        path: the file
        missing: what to say where there is none
        largest: bytes it may have

    Raises:
        ExciseError: the file is missing, unreadable, too large or no JSON object.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise ExciseError(f"{path}: not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > largest:
                raise ExciseError(
                    f"{path}: {size} bytes; such a file has at most {largest}, "
                    "so this one is something else or damaged"
                )
            raw = file.read(largest)
    except FileNotFoundError as error:
        raise ExciseError(f"{path}: {broken_link(path) or missing}") from error
    except OSError as error:
        raise ExciseError(f"{path}: cannot be read ({error.strerror or error})") from error
    return parse_object(raw, str(path))


def broken_link(path: Path) -> str:
    """What is wrong with a link that leads nowhere; empty where there is no such link."""
    if not path.is_symlink() or path.exists():
        return ""
    return f"a link to {path.readlink()}, which does not exist; download the checkpoint again"


def parse_object(raw: bytes, where: str, finite: bool = False) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        raw: UTF-8
        where: what errors start with
        finite: refuse NaN and Infinity, which some configurations hold

    Raises:
        ExciseError: the bytes are no JSON object, repeat a name or are nested too deeply.
    """
    try:
        parse_constant = _refuse if finite else None
        data = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=parse_constant
        )
        if rb"\u" in raw:
            json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair can be read, not written
    except (ValueError, RecursionError) as error:
        raise ExciseError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise ExciseError(f"{where}: expected a JSON object, found {type(data).__name__}")
    if _deeper_than(data, DEEPEST):
        raise ExciseError(f"{where}: nested deeper than {DEEPEST} levels; the file is damaged")
    return data


def is_count(value: Any) -> bool:
    """Whether a value is a whole number ≥ 0 that fits 63 bits.

    Truth values and fractions are none, nor is anything of four thousand digits.
    """
    return type(value) is int and 0 <= value < 2**63


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"it names {name} twice; readers would differ on which one counts")
    return entries


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _deeper_than(data: Any, levels: int) -> bool:
    """Whether objects and lists are nested in more than so many levels."""
    nested = [data]
    for _ in range(levels):
        below: list[Any] = []
        for value in nested:
            below.extend(value.values() if isinstance(value, dict) else value)
        nested = [value for value in below if isinstance(value, dict | list)]
        if not nested:
            return False
    return True
