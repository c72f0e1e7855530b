"""What a sweep will need while its states wait: it is refused early where the disk is too small."""

import torch

from experts.anatomy import Anatomy
from experts.decoder import decoder_layers
from experts.errors import ExciseError
from experts.limits import processes_here
from experts.room import Room
from experts.sweep.job import Job
from experts.sweep.record import CleanForward
from experts.sweep.spill import SpillFolder
from experts.sweep.waiting import Waiting, no_room
from experts.units import human


def need_of(anatomy: Anatomy, job: Job, forwards: list[CleanForward]) -> Waiting:
    """What a job needs, from the widths of the model.

    Args:
        anatomy: the model
        job: what is done with it
        forwards: the clean forward of every batch
    """
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
    return Waiting(clean, branches, num_layers, job.clean_until is None)


def check_disk(need: Waiting, job: Job, room: Room, spill: SpillFolder | None) -> None:
    """Refuse a sweep whose states will not fit.

    Raises:
        ExciseError: the disk has less free than the sweep will need; processes of a machine share it.
    """
    if spill is None or room.memory is None:
        return
    size, free = need.on_disk(room.memory), spill.free() // processes_here()
    if size > free:
        raise ExciseError(no_room(room.spill, job.title, human(size), human(room.memory), human(free)))
