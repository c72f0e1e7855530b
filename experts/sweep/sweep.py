"""The sweep: visit the decoder layers in order; serve every branch of a job while their weights are there.

Where all weights are in memory there is one part with all layers. Every branch then runs to its end at once,
and nothing is stored. Where weights are read from the checkpoint a part is one layer, and hidden states wait
between the parts.
"""

from collections.abc import Iterator

import torch

from experts.anatomy import Anatomy
from experts.decoder import Part, part_of
from experts.errors import ExciseError, is_out_of_memory
from experts.memory import release
from experts.sweep.branch import Branch
from experts.sweep.job import Job
from experts.sweep.record import CleanForward
from experts.sweep.runner import Runner
from experts.sweep.stage import State


@torch.no_grad()
def sweep(anatomy: Anatomy, job: Job) -> None:
    """Run a job.

    Args:
        anatomy: the model
        job: takes the results
    """
    Sweep(anatomy, job).run()


class Sweep:
    """One pass over the decoder layers.

    Args:
        anatomy: the model
        job: what it is for
    """

    def __init__(self, anatomy: Anatomy, job: Job) -> None:
        self.anatomy, self.job = anatomy, job
        self.runner = Runner(anatomy)
        self.alive: list[list[tuple[Branch, State]]] = [[] for _ in range(job.batches)]
        self.states: list[State | None] = [None] * job.batches
        self.forwards: list[CleanForward | None] = [None] * job.batches

    def run(self) -> None:
        """Visit all layers."""
        for span in self.anatomy.weights.spans():
            part = part_of(self.anatomy, span)
            with self.anatomy.weights.loaded(span):
                for batch in range(self.job.batches):
                    self._visit(part, batch)

    def _visit(self, part: Part, batch: int) -> None:
        """Take a batch through some layers: the clean forward, then every branch of it."""
        clean = self.forwards[batch] or self.job.clean(batch)
        last = self._is_last(part)
        output = self._run_clean(part, batch, clean)
        if last:
            self.job.arrived(batch, clean, output if isinstance(output, torch.Tensor) else None)
        alive, self.alive[batch] = self.alive[batch], []
        for branch, state in alive:
            self._advance(part, batch, clean, branch, state)
        for branch in self._newborn(part, batch, clean):
            self._advance(part, batch, clean, branch, None)
        clean.forget()
        self.states[batch] = output if isinstance(output, dict) else None
        self.forwards[batch] = None if last else clean

    def _run_clean(self, part: Part, batch: int, clean: CleanForward) -> State | torch.Tensor | None:
        """The clean forward, as far as it is needed."""
        until, state = self.job.clean_until, self.states[batch]
        with self.job.around(batch, part):
            if until is None or until >= part.rows.stop:
                return self.runner.clean(part, clean, state, head=self.job.head, record=self.job.branches)
            if until in part.rows:
                self.runner.prefix(part, clean, state, until)
            return None

    def _newborn(self, part: Part, batch: int, clean: CleanForward) -> Iterator[Branch]:
        """Branches that begin in this part."""
        if part.span.start == 0:
            yield from self.job.whole(batch)
        if self.job.branches:
            for row in part.rows:
                yield from self.job.born(batch, row, clean)

    def _advance(
        self, part: Part, batch: int, clean: CleanForward, branch: Branch, state: State | None
    ) -> None:
        """Take a branch through some layers; in halves where it does not fit into memory."""
        try:
            output = self.runner.branch(part, branch, clean, state)
            if isinstance(output, torch.Tensor):
                branch.arrived(clean, output)
            elif output is not None:
                self.alive[batch].append((branch, output))
            return
        except ExciseError as error:
            if not branch.forgives(error):
                raise
            return
        except (RuntimeError, MemoryError) as error:
            halves = branch.halves() if is_out_of_memory(error) and state is None else None
            if halves is None:
                raise
        release()  # outside the handler: its traceback holds the tensors of the failed attempt
        for half in halves:
            self._advance(part, batch, clean, half, None)

    def _is_last(self, part: Part) -> bool:
        return part.span.stop == len(self.runner.layers)
