"""A batch passes through a part of the model: the clean forward first, then every branch of it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.anatomy import Anatomy
from experts.decoder import Part
from experts.errors import ExciseError, is_out_of_memory, one_line
from experts.memory import release
from experts.sweep.births import Births
from experts.sweep.branch import Branch
from experts.sweep.job import Job
from experts.sweep.progress import Progress
from experts.sweep.record import CleanForward, at_positions, bytes_born
from experts.sweep.runner import Runner
from experts.sweep.stage import State
from experts.sweep.streams import Key, Streams

CLEAN, BRANCH = "clean", "branch"  # first words of the keys of states
WHOLE = -1  # in the place of the MoE layer, for a whole forward


@dataclass(frozen=True)
class Living:
    """A branch on its way.

    Attributes:
        key: of its state: BRANCH, the batch, its MoE layer, its number there; of a half, 0 or 1 besides
        branch: what is changed
    """

    key: Key
    branch: Branch


class Visits:
    """Takes batches through parts of the model.

    Args:
        anatomy: the model
        job: what is done with it
        streams: where states wait
        progress: is told what has run
        most: bytes of the states of branches that may wait at once; None = no bound

    Attributes:
        births: which branches are still to come
        alive: the branches that wait, batch by batch
        forwards: the clean forward of every batch that is begun and not finished
        too_many: copies of single tokens that did not fit into one forward; None = all did
    """

    def __init__(
        self, anatomy: Anatomy, job: Job, streams: Streams, progress: Progress, most: int | None = None
    ) -> None:
        self.anatomy, self.job, self.streams, self.progress, self.most = anatomy, job, streams, progress, most
        self.spans = anatomy.weights.spans()
        self.runner = Runner(anatomy)
        self.births = Births(job, len(self.spans) - 1)
        self.alive: list[list[Living]] = [[] for _ in range(job.batches)]
        self.forwards: list[CleanForward | None] = [None] * job.batches
        self.too_many: int | None = None

    def forward(self, batch: int) -> CleanForward:
        """The clean forward of a batch."""
        clean = self.forwards[batch]
        if clean is None:
            clean = self.forwards[batch] = self.job.clean(batch)
        return clean

    def visit(self, number: int, part: Part, batch: int) -> None:
        """Take a batch through a part.

        Args:
            number: of the part
            part: its layers, whose weights are in memory
            batch: number of the batch
        """
        if not self.job.is_wanted(batch):
            return
        clean = self.forward(batch)
        if self._needs_clean(number, part, batch):
            self._clean(number, part, batch, clean)
        moving, self.alive[batch] = self._moving(number, batch)
        for living in moving:
            self._advance(part, batch, living, self.streams.get(living.key))
        for living in self._newborn(number, part, batch, clean):
            self.progress.born(batch, living.branch)
            self._advance(part, batch, living, None)
        clean.forget()
        self._settle(number, batch, clean)

    def after(self, number: int) -> int | None:
        """The number of the part that follows, in this pass or the next; None = the sweep is finished."""
        if not self._is_last(number):
            return number + 1
        if not self.births.full:
            return None
        first = self.births.next_pass()
        for key in list(self.streams):
            if key[0] == CLEAN and int(key[2]) < first:
                self.streams.drop(key)
        return first

    def _is_last(self, number: int) -> bool:
        return number == len(self.spans) - 1

    def _needs_clean(self, number: int, part: Part, batch: int) -> bool:
        """Whether the clean forward runs: always in the first pass, later where branches need it."""
        if self.births.first or self.births.possible(number, batch, part.rows):
            return True
        moving, _ = self._moving(number, batch)
        at_positions = any(living.branch.position is not None for living in moving)
        return at_positions or (self._is_last(number) and bool(moving))

    def _moving(self, number: int, batch: int) -> tuple[list[Living], list[Living]]:
        """The branches of a batch that go through a part, and those that rest: references after the first
        pass, until the others arrive.
        """
        alive = self.alive[batch]
        references = [living for living in alive if living.branch.is_reference]
        others = [living for living in alive if not living.branch.is_reference]
        if self.births.first or (self._is_last(number) and others):
            return alive, []
        return others, references

    def _clean(self, number: int, part: Part, batch: int, clean: CleanForward) -> None:
        """Run the clean forward, as far as it is needed."""
        state = self.streams.get((CLEAN, batch, number))
        with self.job.around(batch, part):
            output = self._run_clean(part, clean, state)
        self.progress.clean(part, batch, again=not self.births.first)
        if self._is_last(number):
            self.job.arrived(batch, clean, output if isinstance(output, Tensor) else None)
        elif isinstance(output, dict) and self.births.first:
            self.streams.put((CLEAN, batch, number + 1), output)

    def _run_clean(self, part: Part, clean: CleanForward, state: State | None) -> State | Tensor | None:
        until = self.job.clean_until
        if until is None or until >= part.rows.stop:
            return self.runner.clean(part, clean, state, head=self.job.head, record=self.job.branches)
        if until in part.rows:
            self.runner.prefix(part, clean, state, until)
        return None

    def _newborn(self, number: int, part: Part, batch: int, clean: CleanForward) -> Iterator[Living]:
        """Branches that begin in this part."""
        if number == 0 and self.births.first:
            for which, branch in enumerate(self.job.whole(batch)):
                yield Living((BRANCH, batch, WHOLE, which), branch)
        if not self.births.possible(number, batch, part.rows):
            return
        for row in part.rows:
            for which, branch in self.births.at((number, batch, row), clean, self._fits):
                yield Living((BRANCH, batch, row, which), branch)
            if self._is_last(number) or not self.births.full:
                self.progress.all_born(batch, row)

    def _fits(self, branch: Branch, clean: CleanForward) -> bool:
        """Whether a branch may be born now."""
        if self.most is None:
            return True
        assert branch.row is not None, "whole forwards are not asked for"
        size = bytes_born(clean, self.anatomy.layers[branch.row].index, branch.position)
        return self.streams.waiting[BRANCH] + size <= self.most

    def _advance(self, part: Part, batch: int, living: Living, state: State | None) -> None:
        """Take a branch through some layers; in halves where it does not fit into memory."""
        if self._is_too_much(living.branch):
            self._halve(part, batch, living, state)
        elif not self._ran(part, batch, living, state):
            release()  # outside the handler: its traceback holds the tensors of the failed attempt
            self._halve(part, batch, living, state)

    def _is_too_much(self, branch: Branch) -> bool:
        """Whether so many copies are known not to fit."""
        return (
            self.too_many is not None
            and branch.position is not None
            and len(branch.position) >= self.too_many
        )

    def _ran(self, part: Part, batch: int, living: Living, state: State | None) -> bool:
        """Take a branch through some layers. Returns False where it has to be halved to fit into memory."""
        branch = living.branch
        try:
            output = self.runner.branch(part, branch, self.forward(batch), state)
            self._keep(batch, living, output)
        except ExciseError as error:
            if not branch.forgives(error):
                raise
            self.streams.drop(living.key)
            return True
        except (RuntimeError, MemoryError) as error:
            if branch.position is None or not is_out_of_memory(error):
                raise
            if branch.halves() is None:
                raise ExciseError(
                    f"out of memory: not even one intervention fits ({one_line(error)}); "
                    "use shorter windows or a smaller dtype"
                ) from error
            self.too_many = len(branch.position)
            return False
        self.progress.branch(part, batch, branch, again=branch.is_reference and not self.births.first)
        return True

    def _halve(self, part: Part, batch: int, living: Living, state: State | None) -> None:
        """Take a branch through some layers in two halves."""
        halves = living.branch.halves()
        assert halves is not None, "asked before"
        self.streams.drop(living.key)
        for which, (half, of_half) in enumerate(zip(halves, split(state, halves), strict=True)):
            self._advance(part, batch, Living((*living.key, which), half), of_half)

    def _keep(self, batch: int, living: Living, output: State | Tensor | None) -> None:
        """Let a branch wait, or arrive."""
        if isinstance(output, dict):
            self.streams.put(living.key, output)
            self.alive[batch].append(living)
            return
        if isinstance(output, Tensor):
            living.branch.arrived(self.forward(batch), output)
        if living.branch.is_reference and self.births.full:
            self.alive[batch].append(living)  # it arrives again in the next pass, from the same state
        else:
            self.streams.drop(living.key)

    def _settle(self, number: int, batch: int, clean: CleanForward) -> None:
        """Keep what entered this part for the next pass, if there will be one, and nothing else."""
        entered: Key = (CLEAN, batch, number)
        if self.births.full:
            self.streams.shelve(entered)
        elif self.births.first:
            self.streams.drop(entered)
        if self._is_last(number):
            clean.log_probabilities = None
            if not self.births.full:
                self.forwards[batch] = None


def split(state: State | None, halves: tuple[Branch, Branch]) -> tuple[State | None, State | None]:
    """What enters the halves of a branch of copies. state: what enters the whole; None = it is born there."""
    if state is None:
        return None, None
    sizes = [len(half.position) for half in halves if half.position is not None]
    places = torch.arange(sum(sizes))
    whole = torch.Size((1, len(places)))
    first, second = (
        {key: at_positions(value, chosen, whole) for key, value in state.items()}
        for chosen in torch.split(places, sizes)
    )
    return first, second
