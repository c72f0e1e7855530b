"""The sweep: visit the decoder layers in order; serve every branch of a job while their weights are there.

Where all weights are in memory there is one part with all layers. Every branch then runs to its end at once,
and nothing is stored. Where weights are read from the checkpoint a part is one layer, and hidden states wait
between the parts (streams.py). Branches that do not fit wait for another pass (births.py).
"""

import torch

from experts.anatomy import Anatomy
from experts.decoder import part_of
from experts.room import Room
from experts.sweep.job import Job
from experts.sweep.journal import Journal
from experts.sweep.need import check_disk, need_of
from experts.sweep.progress import Bar, Progress
from experts.sweep.snapshot import files_of, packed, unpack
from experts.sweep.storage import storage
from experts.sweep.streams import Streams
from experts.sweep.visits import Visits


@torch.no_grad()
def sweep(anatomy: Anatomy, job: Job, room: Room | None = None) -> None:
    """Run a job.

    Args:
        anatomy: the model
        job: takes the results
        room: what waiting states may take, and where the progress is recorded; None = as the model says

    Raises:
        ExciseError: the disk has no room for states that do not fit into memory.
    """
    if len(anatomy.weights.spans()) == 1:
        _visit(Visits(anatomy, job, Streams(), Progress()), 0)
        return
    room = room or anatomy.room
    forwards = [job.clean(batch) for batch in range(job.batches)]
    with storage(anatomy, job, forwards, room) as where:
        need = need_of(anatomy, job, forwards)
        check_disk(need, job, room, where.spill)
        most = None if room.memory is None else room.memory - need.for_clean(room.memory)
        bar = Bar(anatomy, job, forwards)
        visits = Visits(anatomy, job, Streams(room.memory, where.spill, anatomy.device), bar, most)
        _visit_all(visits, bar, where.journal)


def _visit_all(visits: Visits, bar: Bar, journal: Journal | None) -> None:
    """As many passes over the layers as branches need that wait for room."""
    number = _begin(visits, journal)
    if number is None:
        return
    with bar:
        while number is not None:
            _visit(visits, number)
            number = visits.after(number)
            if journal is not None and number is not None and journal.is_due():
                journal.write(packed(visits, number), files_of(visits))
    if journal is not None and visits.job.keep_result:
        journal.write(packed(visits, None), [])


def _begin(visits: Visits, journal: Journal | None) -> int | None:
    """The number of the first part: 0, or where an interrupted run was; None = it had finished."""
    content = None if journal is None else journal.read()
    return 0 if content is None else unpack(visits, content)


def _visit(visits: Visits, number: int) -> None:
    """Have the weights of a part, and take all batches through it."""
    span = visits.spans[number]
    part = part_of(visits.anatomy, span)
    with visits.anatomy.weights.loaded(span):
        for batch in range(visits.job.batches):
            visits.visit(number, part, batch)
