"""The places that results and downloads are kept in: where, how large, writable or not."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from experts.cache import cache_folder
from experts.locks import lock
from prune.doctor.result import FolderJson
from prune.machine import free_disk, place_of

NOWHERE: FolderJson = {"path": None, "writable": False, "entries": 0, "size": 0, "free": 0}


def cache() -> FolderJson:
    """Calibrations and experiments of all runs."""
    folder = cache_folder()
    if folder is None:
        return NOWHERE
    files = list(_files(folder))
    return _folder(folder, len(files), sum(size for _, size in files))


def hub_cache() -> FolderJson:
    """Models from the hub."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    models = list(folder.glob("models--*")) if folder.is_dir() else []
    # Snapshots are links to blobs.
    size = sum(size for model in models for _, size in _files(model / "blobs"))
    return _folder(folder, len(models), size)


def here() -> FolderJson:
    """The working folder."""
    return _folder(Path.cwd(), 0, 0)


def can_lock(folder: Path) -> bool:
    """Whether files in a folder can be locked; True where none can be made, which is another problem."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return lock(file.fileno())
    except OSError:
        return True


def is_writable(folder: Path) -> bool:
    """Whether a file can be made in a folder, or in its nearest parent: modes alone do not tell."""
    try:
        with tempfile.TemporaryFile(dir=place_of(folder)):
            return True
    except OSError:
        return False


def _folder(folder: Path, entries: int, size: int) -> FolderJson:
    return {
        "path": str(folder),
        "writable": is_writable(folder),
        "entries": entries,
        "size": size,
        "free": free_disk(folder),
    }


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Files at every depth, with their bytes; what cannot be read is passed over."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield str(path), path.stat().st_size
