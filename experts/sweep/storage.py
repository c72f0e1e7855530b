"""The folder of one sweep in the spill folder: found again by its job.

It is removed when the sweep has ended, unless nothing else holds the result.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from experts.anatomy import Anatomy
from experts.errors import is_out_of_memory
from experts.files import remove_leftovers, temporary_name
from experts.keys import key_of, libraries
from experts.locks import lock
from experts.notes import tell
from experts.room import Room
from experts.sweep.journal import Journal
from experts.sweep.record import CleanForward
from experts.sweep.spill import SpillFolder

DAY = 86_400.0  # seconds after which the folder of a killed sweep without a record is nobody's


class Work(Protocol):
    """What is known of a job (job.py) here."""

    @property
    def title(self) -> str: ...

    @property
    def identity(self) -> str: ...

    @property
    def keep_result(self) -> bool: ...


@dataclass(frozen=True)
class Storage:
    """Where a sweep writes.

    Attributes:
        spill: takes states that do not fit into memory; None = nowhere
        journal: takes records of the progress; None = none are made
    """

    spill: SpillFolder | None = None
    journal: Journal | None = None


@contextmanager
def storage(anatomy: Anatomy, work: Work, forwards: Sequence[CleanForward], room: Room) -> Iterator[Storage]:
    """The folder of a sweep. After an error it stays if there is a record to resume from.

    Args:
        anatomy: the model
        work: what is done with it
        forwards: the clean forward of every batch
        room: where the folder may be, and the model's key
    """
    if room.spill is None:
        yield Storage()
        return
    if room.spill.is_dir():
        remove_leftovers(room.spill, DAY)
    identity = key_of(work.title, work.identity, *map(_digest, forwards))
    with _own_folder(room, work, identity) as folder:
        spill = SpillFolder(folder or temporary_name(room.spill / "sweep"))
        key = key_of(room.key, identity, str(anatomy.model.dtype), libraries())
        journal = None if folder is None else Journal(spill, key)
        try:
            yield Storage(spill, journal)
        except BaseException as error:
            if journal is None or not journal.has_record or is_out_of_memory(error):
                spill.remove_all()
            else:
                spill.remove_all_but_pinned()
            raise
        if journal is not None and work.keep_result and journal.has_record:
            spill.remove_all_but_pinned()
        else:
            spill.remove_all()


@contextmanager
def _own_folder(room: Room, work: Work, identity: str) -> Iterator[Path | None]:
    """A folder that a later run finds again; None where nothing can be resumed."""
    if room.spill is None or not room.key or not work.identity:
        yield None
        return
    folder = room.spill / f"sweep-{identity}"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield folder if _is_free(descriptor, folder) else None
    finally:
        os.close(descriptor)


def _is_free(descriptor: int, folder: Path) -> bool:
    """Whether no other process is at the same work; from now on this one is."""
    try:
        lock(descriptor)
    except BlockingIOError:
        tell(f"{folder}: another process is at the same work; what is finished here is not recorded")
        return False
    return True


def _digest(clean: CleanForward) -> str:
    """Identity of the windows of a batch."""
    parts = [clean.tokens, clean.inputs.get("attention_mask")]
    content = b"".join(part.cpu().numpy().tobytes() for part in parts if part is not None)
    return hashlib.sha256(repr(tuple(clean.tokens.shape)).encode() + content).hexdigest()
