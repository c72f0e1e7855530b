"""Which branches are born when: those that do not fit wait for another pass over the layers.

Branches are born in one order: part by part, in a part batch by batch, in a batch layer by layer. A pass
bears as many as there is room for; the next one goes on where it stopped, and begins at that layer.
"""

from collections.abc import Callable, Iterator
from itertools import chain, islice

from experts.sweep.branch import Branch
from experts.sweep.job import Job
from experts.sweep.record import CleanForward

# Number of the part, of the batch, and the MoE layer.
Place = tuple[int, int, int]
Numbered = tuple[int, Branch]
Fits = Callable[[Branch, CleanForward], bool]


class Births:
    """The branches of a job in the order of their births.

    Args:
        job: bears them
        last: number of the last part, where branches arrive at once and need no room

    Attributes:
        first: whether this is the first pass
        full: whether this pass takes no more branches
        next: the first place that is not finished
        count: branches of that place that were born
        admitted: branches that this pass took
    """

    def __init__(self, job: Job, last: int) -> None:
        self.job, self.last = job, last
        self.first, self.full = True, False
        self.next: Place = (0, 0, 0)
        self.count = self.admitted = 0
        self._rest: Iterator[Numbered] | None = None  # of the branches of `next`

    def possible(self, part: int, batch: int, rows: range) -> bool:
        """Whether branches may be born in these layers now."""
        if not self.job.branches or not rows:
            return False
        if part == self.last:
            return self.first
        return not self.full and (part, batch, rows.stop) > self.next

    def at(self, place: Place, clean: CleanForward, fits: Fits) -> Iterator[Numbered]:
        """Branches that are born at a place now, with their numbers there.

        Args:
            place: number of the part, number of the batch, MoE layer
            clean: the clean forward, which has just run through this layer
            fits: whether there is room for one more
        """
        part, batch, row = place
        if part == self.last:
            if self.first:
                yield from enumerate(self.job.born(batch, row, clean))
            return
        if self.full or place < self.next:
            return
        yield from self._fitting(place, clean, fits)

    def next_pass(self) -> int:
        """Begin another pass. Returns the number of the part that it begins with."""
        self.first, self.full, self.admitted = False, False, 0
        return self.next[0]

    def restore(self, batch: int, row: int, clean: CleanForward) -> dict[int, Branch]:
        """The branches of a place that were born before an interruption, by number."""
        pending: Iterator[Numbered] = enumerate(self.job.born(batch, row, clean))
        if self.next[1:] != (batch, row) or not self.count:
            return dict(pending)
        born = dict(islice(pending, self.count))
        self._rest = pending
        return born

    def _begun(self, place: Place, clean: CleanForward) -> Iterator[Numbered]:
        """What is left of the branches of a place."""
        if place > self.next:
            self.next, self.count, self._rest = place, 0, None
        if self._rest is None:
            self._rest = enumerate(self.job.born(place[1], place[2], clean))
        return self._rest

    def _fitting(self, place: Place, clean: CleanForward, fits: Fits) -> Iterator[Numbered]:
        pending = self._begun(place, clean)
        for number, branch in pending:
            if self.admitted and not fits(branch, clean):
                self.full, self._rest = True, chain([(number, branch)], pending)
                return
            self.admitted += 1
            self.count = number + 1
            yield number, branch
        part, batch, row = place
        self.next, self.count, self._rest = (part, batch, row + 1), 0, None
