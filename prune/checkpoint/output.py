"""Where a new checkpoint goes: refuses a folder that exists, that Excise did not write, or a full disk."""

import shutil
from pathlib import Path

from experts.disk.companions import PLAN
from experts.errors import ExciseError
from experts.units import human

REPLACE = "choose another output, or replace it with --force (in Python force=True)"
BESIDE_TENSORS = 2**20  # bytes: tokenizer, configuration and headers


def check_output(source: Path, out: Path, force: bool) -> None:
    """Refuse an output that is taken. Even with `force` only checkpoints that Excise wrote are replaced.

    Raises:
        ExciseError: `out` is or contains the source, exists without `force`, or was not written by Excise.
    """
    here, there = out.resolve(), source.resolve()
    if here == there or here in there.parents:
        raise ExciseError(f"{out}: is or contains the source model; choose another output")
    if not out.exists():
        return
    if not force:
        raise ExciseError(f"{out}: exists already; {REPLACE}")
    if is_foreign(out):
        raise ExciseError(
            f"{out}: exists and was not written by Excise (no {PLAN} in it), so it is not replaced; "
            "remove it yourself"
        )


def is_foreign(out: Path) -> bool:
    """Whether a path holds something that is neither a checkpoint of Excise nor an empty folder."""
    if not out.exists() or (out / PLAN).is_file():
        return False
    return not out.is_dir() or any(out.iterdir())


def check_space(out: Path, size: int) -> None:
    """Refuse an export for which the disk has no room.

    Args:
        size: bytes of all tensors.

    Raises:
        ExciseError: the file system of `out` has less room than that.
    """
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free, needed = shutil.disk_usage(parent).free, size + BESIDE_TENSORS
    if free < needed:
        raise ExciseError(
            f"{parent}: {human(needed)} needed, {human(free)} free; free some or choose another output"
        )
