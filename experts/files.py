"""Files and folders that appear whole or not at all: they are filled under another name first. No torch."""

import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from experts.errors import ExciseError, naming

MARK, END = ".excise-", ".new"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path` to fill: it takes the name when the block ends, or goes if the block fails.

    Its name is random, so that no other process writes it, in this container or another. Whatever fills it,
    it gets the mode of any new file here (umask). An OSError names `path`.
    """
    fresh = _beside(path)
    with naming(path, instead_of=fresh):
        mode = _created(fresh)
        try:
            yield fresh
            _set_mode(fresh, mode)
            fresh.replace(path)
        except BaseException:
            with suppress(OSError):
                fresh.unlink()
            raise


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder. What stood there is moved aside, and removed when the new one has its name."""
    fresh, old = _beside(path), _beside(path)
    with naming(path, instead_of=fresh):
        fresh.mkdir()
        try:
            yield fresh
            give_usual_modes(fresh)
            with suppress(FileNotFoundError):
                path.rename(old)
            fresh.rename(path)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            with suppress(OSError):
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def give_usual_modes(folder: Path) -> None:
    """Every file below gets the mode of a new file here; libraries leave some unreadable to others."""
    mode = usual_mode(folder)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            _set_mode(file, mode)


def check_name(path: Path) -> None:
    """Raises ExciseError for a name that libraries in Rust and C++ cannot open, before any work is done."""
    try:
        os.fsencode(path).decode()  # by its bytes: a C locale shows good ones as bad
    except UnicodeDecodeError as error:
        raise ExciseError(f"{path}: the name holds bytes that are not UTF-8; choose another one") from error


def usual_mode(folder: Path) -> int:
    """What umask and the folder give a new file. Raises OSError where none can be made."""
    probe = _beside(folder / "probe")
    mode = _created(probe)
    probe.unlink()
    return mode


def remove_leftovers(folder: Path, age: float = 0.0) -> None:
    """What killed processes left. age: seconds; what is younger may still be written by another process."""
    before = time.time() - age
    for leftover in filter(is_leftover, folder.iterdir()):
        with suppress(OSError):
            if leftover.stat().st_mtime <= before:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def is_leftover(path: Path) -> bool:
    """Whether it has a temporary name of this module."""
    return path.name.startswith(MARK) and path.name.endswith(END)


def _beside(path: Path) -> Path:
    """No longer than any name, whatever that of `path` is."""
    return path.with_name(f"{MARK}{secrets.token_hex(8)}{END}")


def _created(path: Path) -> int:
    """Makes an empty file, which must not exist, and tells the mode that umask and the folder gave it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        with suppress(OSError):  # some file systems have no modes
            path.chmod(mode)
