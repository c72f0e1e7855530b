"""A folder that comes into its place whole or not at all.

It is filled beside its place under a hidden name, then moved there in one step. Meanwhile its process holds a
lock on it (flock). By that later exports know what was abandoned, wherever the process ran: process numbers
say nothing between two containers on one volume.
"""

import contextlib
import ctypes
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from experts.locks import lock

# Of Linux's renameat2.
AT_FDCWD = -100  # paths start from the working directory
RENAME_EXCHANGE = 2


@contextlib.contextmanager
def growing(out: Path) -> Iterator[Path]:
    """A new folder `.OUT.<process>-<random>.partial` for the caller to fill and to `settle`.

    Whatever has that name when the block ends is removed.
    """
    folder = out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(3)}.partial")
    folder.mkdir(parents=True)
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            lock(descriptor)  # on a file system without locks nobody removes it as abandoned either
            yield folder
        finally:
            os.close(descriptor)
    finally:
        discard(folder)


def settle(folder: Path, out: Path, force: bool) -> None:
    """Move the finished folder to its place.

    Args:
        force: replace what is there. It gets the hidden name, in the same step where the system can exchange
            folders.

    Raises:
        OSError: something is there by now, and is not to be replaced.
    """
    if not force or not out.exists():
        folder.rename(out)
    elif not _exchanged(folder, out):
        old = folder.with_suffix(".replaced")
        out.rename(old)
        folder.rename(out)
        discard(old)
    sync(out.parent)


def _exchanged(first: Path, second: Path) -> bool:
    """Exchange two folders at once, as Linux can (renameat2) on most file systems. False: it cannot."""
    try:
        exchange = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):  # another system, or an old C library
        return False
    status = exchange(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE)
    return bool(status == 0)


def remove_abandoned(out: Path, kind: str) -> None:
    """Remove hidden folders beside `out` whose process is gone.

    Args:
        kind: `partial`, or `replaced` (by an export that was killed).
    """
    for folder in out.parent.glob(f".{glob.escape(out.name)}.*.{kind}"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                if lock(descriptor):  # fails where somebody is filling it
                    discard(folder)
            finally:
                os.close(descriptor)


def discard(folder: Path) -> None:
    """Remove a folder, config.json first: killed in the middle, what remains is no checkpoint."""
    with contextlib.suppress(OSError):
        (folder / "config.json").unlink()
    shutil.rmtree(folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Bring a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
