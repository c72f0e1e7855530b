"""Results that are kept for all runs. The cache is optional: whatever is wrong with it, no run stops."""

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from experts.errors import one_line
from experts.files import remove_leftovers, usual_mode
from experts.notes import tell

Result = TypeVar("Result")
OWN_CACHE = "cache"  # in a run folder, where the shared one cannot be used
DAY = 86_400.0  # seconds after which a temporary file is nobody's


def cache_folder() -> Path | None:
    """$EXCISE_CACHE, else `excise` in the user's cache folder; None for a user without a home."""
    if chosen := os.environ.get("EXCISE_CACHE"):
        return Path(os.path.expanduser(chosen))  # noqa: PTH111 - that of Path raises where there is no home
    cache = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache"))  # noqa: PTH111, PTH117
    return folder / "excise" if folder.is_absolute() else None


class Cache:
    """The cache as one run uses it.

    Attributes:
        own: a folder of the run, which takes the place of a shared cache that cannot be used
    """

    def __init__(self, run: Path) -> None:
        self.own = run / OWN_CACHE

    @cached_property
    def shared(self) -> Path | None:
        """The folder of all runs; None, and a note, where it cannot be used."""
        folder = cache_folder()
        reason = "there is no home folder"
        if folder is not None:
            try:
                _prepare(folder)
            except OSError as error:
                reason = f"{folder} cannot be written ({_reason(error)})"
            else:
                return folder
        tell(
            f"{reason}: results stay in {self.own}, for this run alone; "
            "EXCISE_CACHE names a folder for all runs"
        )
        return None

    def read(self, name: str, read: Callable[[Path], Result | None]) -> Result | None:
        """What `read` returns for the first file of that name that it can use, else None.

        Args:
            name: of the file in the cache
            read: reads it; None where it cannot be used
        """
        for folder in (self.shared, self.own):
            result = None if folder is None else read(folder / name)
            if result is not None:
                return result
        return None

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Let `write` make the file of that name: for all runs, or else for this one."""
        if self.shared is not None:
            try:
                write(self.shared / name)
            except OSError as error:  # full, over quota, or the entry is another user's
                tell(
                    f"{self.shared} cannot take a result ({_reason(error)}): "
                    f"it stays in {self.own}, for this run alone"
                )
            else:
                return
        self.own.mkdir(parents=True, exist_ok=True)
        write(self.own / name)


def _prepare(folder: Path) -> None:
    """Make the folder, and a file in it: modes alone do not tell. Leftovers of killed runs go."""
    folder.mkdir(parents=True, exist_ok=True)
    usual_mode(folder)
    remove_leftovers(folder, DAY)


def _reason(error: OSError) -> str:
    return error.strerror or one_line(error)
