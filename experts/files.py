"""Files and folders that appear whole or not at all: they are filled under another name first."""

import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from experts.errors import ExciseError, naming

PREFIX, SUFFIX = ".excise-", ".new"  # of temporary names


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new file beside `path` to fill.

    It takes the name `path` when the block ends, and is removed if the block fails.
    Its name is random, so that no other process writes it, in this container or another. Whatever fills it,
    it gets the mode of any new file here (umask). An OSError names `path`.
    """
    fresh = temporary_name(path)
    with naming(path, instead_of=fresh):
        mode = _create(fresh)
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
    """The same for a folder. One that is there already is removed when the new one has its name."""
    fresh, old = temporary_name(path), temporary_name(path)
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
    """Give every file below the mode of a new file here: libraries leave some unreadable to others."""
    mode = usual_mode(folder)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            _set_mode(file, mode)


def check_name(path: Path) -> None:
    """Refuse a name that libraries in Rust and C++ cannot open, before any work is done."""
    try:
        os.fsencode(path).decode()  # by its bytes: a C locale shows good ones as bad
    except UnicodeDecodeError as error:
        raise ExciseError(f"{path}: the name holds bytes that are not UTF-8; choose another one") from error


def usual_mode(folder: Path) -> int:
    """The mode of a new file, by umask and folder. Raises OSError where none can be made."""
    probe = temporary_name(folder / "probe")
    mode = _create(probe)
    probe.unlink()
    return mode


def check_writable(folder: Path, key: str) -> None:
    """Refuse a folder in which nothing can be written, before any work is done. It need not be there yet.

    Args:
        folder: where files will go
        key: what the user calls it
    """
    whole = folder.absolute()
    nearest = next(place for place in (whole, *whole.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as probe:
            probe.write(b"x")
    except OSError as error:
        raise ExciseError(
            f"{key}: nothing can be written to {folder} ({error.strerror}); name a folder on a disk with room"
        ) from error


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder inside `folder`, removed at the end, or by `remove_leftovers` after a kill."""
    fresh = temporary_name(folder / "temporary")
    fresh.mkdir()
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def remove_leftovers(folder: Path, age: float = 0.0) -> None:
    """Remove temporary files and folders that killed processes left.

    Args:
        folder: where they are
        age: seconds; what is younger may still be written by another process
    """
    before = time.time() - age
    for leftover in filter(is_leftover, folder.iterdir()):
        with suppress(OSError):
            if leftover.stat().st_mtime > before:
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def is_leftover(path: Path) -> bool:
    """Whether a path has a temporary name of this module."""
    return path.name.startswith(PREFIX) and path.name.endswith(SUFFIX)


def temporary_name(path: Path) -> Path:
    """A temporary name in the folder of `path`; its length does not depend on `path`."""
    return path.with_name(f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}")


def _create(path: Path) -> int:
    """Create an empty file, which must not exist, and return its mode, by umask and folder."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        with suppress(OSError):  # some file systems have no modes
            path.chmod(mode)
