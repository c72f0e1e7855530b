"""What sets of removed experts cost that differ little from one another: KL(unpruned ‖ pruned)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from criteria.experiment_context import ExperimentContext
from criteria.removal_costs import Unpruned
from experts.ablation import ablated
from experts.anatomy import Anatomy
from experts.arrays import Array, Ids, Marks
from experts.decoder import Part
from experts.effects.instrument import Instrument
from experts.effects.measurement import Measurement
from experts.effects.removal import Removal, Take
from experts.errors import ExciseError
from experts.memory import in_chunks
from experts.modes import Mode, Scope
from experts.sweep.branch import Branch
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep
from experts.team import deal, undeal


class SetCosts:
    """Measures sets of removed experts in mode reroute, as pruning does.

    Args:
        context: model and text
        windows: how many windows are used; 0 = all
    """

    def __init__(self, context: ExperimentContext, windows: int) -> None:
        self.anatomy, self.batch = context.anatomy, context.batch
        self.tokens = context.tokens(windows)
        self.instrument = Instrument.ready(self.anatomy, Mode.REROUTE, Scope.CORPUS, self.tokens)

    def of(self, sets: Marks) -> Array:
        """Return KL(unpruned ‖ pruned) of every set in every window [M, N], nats per token.

        Args:
            sets: removed experts [M, L, E]. Whatever is as in the first of them is computed once.

        Raises:
            ExciseError: a KL is not finite.
        """
        num_windows, length = self.tokens.shape
        costs = np.zeros((len(sets), num_windows))
        at_once = self.instrument.windows_at_once(self.tokens, self.batch)
        team, streamed = self.anatomy.team, self.anatomy.weights.streamed

        def work(start: int, stop: int) -> None:
            parts = [part.cpu() for part in torch.split(self.tokens[start:stop], at_once)]
            hands = [(hand, self.instrument.settings, sets) for hand in deal(parts, team.size)]
            found = undeal(team.map(self.anatomy, _measured, hands))
            costs[:, start:stop] = np.concatenate(found, axis=1)

        in_chunks(num_windows, num_windows if streamed else at_once * team.size, work, "window")
        if not np.isfinite(costs).all():
            dtype = self.anatomy.model.dtype
            raise ExciseError(f"causal_swaps: a KL is not finite; is the model sound in {dtype}?")
        return costs / (length - 1)


def _measured(
    anatomy: Anatomy, parts: Sequence[Tensor], settings: dict[str, Any], sets: Marks
) -> list[Array]:
    """KL summed over the tokens of a window, batch by batch [M, B]."""
    windows = [part.to(anatomy.device) for part in parts]
    job = _Sets(Instrument(anatomy, **settings), windows, sets)
    sweep(anatomy, job)
    return job.found


class _Sets(Measurement):
    """Sets of removed experts as branches of a forward without those of the first.

    Attributes:
        found: KL of every batch, summed over the tokens of a window [M, B]
    """

    keep_result = True  # a search that is interrupted goes through its finished rounds at once

    def __init__(self, instrument: Instrument, parts: Sequence[Tensor], sets: Marks) -> None:
        super().__init__(instrument, parts, Scope.CORPUS)
        self.title = f"{len(sets)} sets of experts removed"
        self.sets, self.rows = sets, lowest_changes(sets)
        marks = torch.from_numpy(sets).to(instrument.anatomy.device)
        self.removed = [{row: of_row for row, of_row in enumerate(one) if of_row.any()} for one in marks]
        self.found = [np.zeros((len(sets), len(part))) for part in parts]

    @property
    def identity(self) -> str:
        return self.key_of(self.sets.shape, np.packbits(self.sets).tobytes().hex())

    def around(self, batch: int, part: Part) -> AbstractContextManager[None]:  # noqa: ARG002
        return ablated(part.anatomy, part.of(self.removed[0]), Mode.REROUTE)

    def whole(self, batch: int) -> Iterator[Branch]:  # noqa: ARG002
        yield Unpruned(row=None, is_reference=True)

    def removals(self, batch: int, row: int, clean: CleanForward) -> Iterator[Removal]:  # noqa: ARG002
        for number in np.flatnonzero(self.rows == row).tolist():
            yield Removal(row, self.removed[number], self._keep(batch, number))

    def most_born(self, batch: int, row: int) -> int:  # noqa: ARG002
        return int((self.rows == row).sum())

    def state(self) -> dict[str, Array]:
        return {**super().state(), "found": np.concatenate(self.found, axis=1)}

    def restore(self, state: dict[str, Array]) -> None:
        super().restore(state)
        stops = np.cumsum([len(part) for part in self.windows])[:-1]
        self.found = np.split(state["found"], stops, axis=1)

    def _keep(self, batch: int, number: int) -> Take:
        def take(_: Tensor, divergence: Tensor) -> None:
            self.found[batch][number] = divergence.sum(dim=1).cpu().numpy()

        return take


def lowest_changes(sets: Marks) -> Ids:
    """The lowest row in which each set differs from the first [M]; the last row where none does."""
    rows: Ids = np.arange(sets.shape[1])
    changed = (sets != sets[0]).any(axis=2)
    lowest: Ids = np.where(changed, rows, len(rows) - 1).min(axis=1)
    return lowest
