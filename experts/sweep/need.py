"""What a sweep will need while its states wait: it is refused early where the disk is too small."""

from dataclasses import dataclass

import torch

from experts.anatomy import Anatomy
from experts.decoder import decoder_layers
from experts.errors import ExciseError
from experts.room import Room
from experts.sweep.job import Job
from experts.sweep.record import CleanForward
from experts.sweep.spill import SpillFolder
from experts.units import human


@dataclass(frozen=True)
class Need:
    """Estimates in bytes, from the widths of the model.

    Attributes:
        clean: the clean states of all batches that wait in front of a layer
        branches: those of all branches that are known before, if none had to wait for room
        num_layers: decoder layers in which clean states are kept when branches have to wait for room
    """

    clean: int
    branches: int
    num_layers: int

    @classmethod
    def of(cls, anatomy: Anatomy, job: Job, forwards: list[CleanForward]) -> "Need":
        """Of a job on a model. forwards: the clean forward of every batch."""
        width = anatomy.model.config.get_text_config().hidden_size
        token = width * torch.empty(0, dtype=anatomy.model.dtype).element_size()
        wanted = [batch for batch in range(job.batches) if job.is_wanted(batch)]
        num_layers = len(decoder_layers(anatomy))
        # What is born in the last layer arrives at once.
        rows = [row for row, layer in enumerate(anatomy.layers) if layer.index < num_layers - 1]
        clean = branches = 0
        for batch in wanted:
            size = token * forwards[batch].tokens.numel()
            clean += size
            branches += size * sum(job.most_born(batch, row) or 0 for row in rows)
        return cls(clean, branches, num_layers)

    def for_clean(self, job: Job, memory: int) -> int:
        """The part of the memory that branches leave to clean states, which come back in every layer."""
        return 0 if job.clean_until is not None else min(self.clean, memory // 2)

    def on_disk(self, job: Job, memory: int) -> int:
        """Bytes of files, at most, without records."""
        for_clean = self.for_clean(job, memory)
        spilled = self.clean - for_clean if job.clean_until is None else 0
        if self.branches > memory - for_clean:
            spilled += self.clean * (self.num_layers if job.clean_until is None else 1)
        return spilled


def check_disk(need: Need, job: Job, room: Room, spill: SpillFolder | None) -> None:
    """Refuse a sweep whose states will not fit.

    Raises:
        ExciseError: the disk has less free than the sweep will need.
    """
    if spill is None or room.memory is None:
        return
    size = need.on_disk(job, room.memory)
    if size > spill.free():
        raise ExciseError(
            f"{room.spill}: {job.title}: waiting states will need {human(size)} beside {human(room.memory)} "
            f"of memory, {human(spill.free())} are free; free some, or set memory.spill to another folder"
        )
