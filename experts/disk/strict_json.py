"""JSON from files that others wrote: bounded in size and depth, no name twice, nothing that could not be written again. No torch."""

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
    """A JSON object from a file, or an ExciseError that names the file. missing: what to say where there is none."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise ExciseError(f"{path}: not a regular file")
        with path.open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > largest:
                raise ExciseError(
                    f"{path}: {size} bytes; such a file has at most {largest}, so this one is something else or damaged"
                )
            raw = file.read(largest)
    except FileNotFoundError as error:
        raise ExciseError(f"{path}: {broken_link(path) or missing}") from error
    except OSError as error:
        raise ExciseError(f"{path}: cannot be read ({error.strerror or error})") from error
    return parse_object(raw, str(path))


def broken_link(path: Path) -> str:
    """What is wrong with a file that is not there although its name is; empty where the name is not there either."""
    broken = path.is_symlink() and not path.exists()
    return (
        f"a link to {path.readlink()}, which does not exist; download the checkpoint again" if broken else ""
    )


def parse_object(raw: bytes, where: str, finite: bool = False) -> dict[str, Any]:
    """A JSON object, or an ExciseError that starts with `where`. finite: NaN and Infinity, which some configurations hold, are refused."""
    try:
        data = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_without_repeats,
            parse_constant=_refuse if finite else None,
        )
        if rb"\u" in raw:
            json.dumps(
                data, ensure_ascii=False
            ).encode()  # half a surrogate pair can be read, and not be written
    except (ValueError, RecursionError) as error:
        raise ExciseError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise ExciseError(f"{where}: expected a JSON object, found {type(data).__name__}")
    if _deeper_than(data, DEEPEST):
        raise ExciseError(f"{where}: nested deeper than {DEEPEST} levels; the file is damaged")
    return data


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"it names {name} twice; readers would differ on which one counts")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _deeper_than(data: Any, levels: int) -> bool:
    layer = [data]
    for _ in range(levels):
        values = (value for one in layer for value in (one.values() if isinstance(one, dict) else one))
        layer = [value for value in values if isinstance(value, dict | list)]
        if not layer:
            return False
    return True


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 0 that fits 63 bits: no truth value, no fraction, nothing of four thousand digits."""
    return type(value) is int and 0 <= value < 2**63
