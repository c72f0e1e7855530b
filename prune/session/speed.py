"""How fast a model forwarded windows here: runs write it down while they test plans, `--dry-run` reads it."""

import json
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from experts.cache import OWN_CACHE, cache_folder
from experts.disk.shards import Checkpoint
from prune.session.run_folder import write_json
from prune.typed_json import problems


class Speed(TypedDict):
    """Windows that were forwarded in a time, and under which settings."""

    windows: int
    seconds: float
    machine: str  # name of the computer
    device: str
    dtype: str  # of the recipe
    batch: int  # windows per forward
    length: int  # tokens per window


class SpeedFile(TypedDict):
    """A file in the cache: one model, the newest record last."""

    speeds: list[Speed]


def keep_speed(checkpoint: Checkpoint, run: Path, speed: Speed) -> None:
    """Write a record: for all runs, or in the run folder where there is no other place.

    A record is a convenience: where neither can be written there is none, and no note.

    Args:
        checkpoint: of the model
        run: the run folder
    """
    for path in _files(checkpoint, run):
        with suppress(OSError):
            others = [old for old in _read(path) if _settings(old) != _settings(speed)]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"speeds": [*others, speed]})
            return


def known_speeds(checkpoint: Checkpoint, run: Path) -> list[Speed]:
    """All records of a model, those of this run last. Nothing is written."""
    return [speed for path in reversed(list(_files(checkpoint, run))) for speed in _read(path)]


def this_machine() -> str:
    """The name of this computer; a cache may be on a disk of several."""
    return platform.node()


def _settings(speed: Speed) -> tuple[object, ...]:
    """A new record replaces the one that has the same."""
    return speed["machine"], speed["device"], speed["dtype"], speed["batch"], speed["length"]


def _files(checkpoint: Checkpoint, run: Path) -> Iterator[Path]:
    """Where records of a model may be; equal forms mean equal speed."""
    name = f"speed-{checkpoint.form}.json"
    folder = cache_folder()
    if folder is not None:
        yield folder / name
    yield run / OWN_CACHE / name


def _read(path: Path) -> list[Speed]:
    """What a file holds; a damaged one holds nothing."""
    with suppress(OSError, ValueError, RecursionError):
        data = json.loads(path.read_text(encoding="utf-8"))
        if not any(problems(data, SpeedFile)):
            speeds: list[Speed] = data["speeds"]
            return [speed for speed in speeds if speed["seconds"] > 0 and speed["windows"] > 0]
    return []
