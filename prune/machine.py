"""What this machine has left: cores, disk."""

import os
import shutil
from pathlib import Path


def cores() -> int:
    """Processor cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def place_of(path: Path) -> Path:
    """The path, or the folder nearest to it that is there already."""
    whole = path.absolute()
    return next(folder for folder in (whole, *whole.parents) if folder.exists())


def free_disk(path: Path) -> int:
    """Bytes free where a path is, or will be."""
    return shutil.disk_usage(place_of(path)).free
