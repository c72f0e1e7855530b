"""The raw table of effects: one row per removal of an expert, window by window (docs/methods.md, 1.3 and 2).

Shapes: N windows of W tokens, E experts, k active ones, L MoE layers.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experts.ablation import marked
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.effects.instrument import Instrument
from experts.effects.measurement import Measurement
from experts.effects.removal import Gathered, Removal, Take
from experts.memory import in_chunks
from experts.modes import Scope
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep
from experts.team import deal
from validate.active_experts import Active, Removals, Table, mean_gate_weights, window_means

COLUMNS = (
    "document",
    "position",
    "token",
    "layer",
    "expert",
    "gate_weight",
    "rank",
    "baseline_loss",
    "delta",
    "kl",
)
MOST_WINDOWS = 8  # at once: more is not faster
Keep = Callable[[int, int, Table], None]


def measure_effects(
    instrument: Instrument,
    tokens: Tensor,
    missing: Mapping[int, Sequence[int]],
    removals: Removals,
    keep: Keep,
) -> None:
    """Measure every missing layer of every window.

    The columns of a table: `document` = number of the window; `position` in the window, 0-based; `token` =
    its id; `layer` = decoder layer index; `expert`; `gate_weight` as applied; `rank` of the expert among the
    active ones, 0 = largest gate weight; `baseline_loss` of the next token, nats; `delta` (ΔCE) and `kl` of
    the removal, nats. In scope corpus a row is the mean over a window: position, token and rank are −1,
    gate_weight is the mean over the positions where the expert is active.

    Args:
        instrument: of the model, checked for the scope
        tokens: all windows [N, W]
        missing: number of a window -> places of its missing layers among the L MoE layers
        removals: what is removed and read
        keep: called with number of the window, place of the layer, and table, as soon as each is finished
    """
    size = 1 if removals.scope is Scope.POSITION else instrument.windows_at_once(tokens, MOST_WINDOWS)
    streamed = instrument.anatomy.weights.streamed
    # A sweep that is taken up after an interruption needs the batches that it had, finished or not.
    numbers = list(range(len(tokens)) if streamed else missing)

    team = instrument.anatomy.team

    def work(start: int, stop: int) -> None:
        windows = numbers[start:stop]
        batches = [windows[first : first + size] for first in range(0, len(windows), size)]
        if team.size == 1:
            sweep(instrument.anatomy, _MissingEffects(instrument, tokens, batches, missing, removals, keep))
            return
        asked = (instrument.settings, tokens.cpu(), dict(missing), removals)
        hands = [(hand, *asked) for hand in deal(batches, team.size)]
        for tables in team.map(instrument.anatomy, _tables, hands):
            for (window, row), table in tables.items():
                keep(window, row, table)

    in_chunks(len(numbers), len(numbers) if streamed else size * team.size, work, "window")


def _tables(
    anatomy: Anatomy,
    batches: Sequence[Sequence[int]],
    settings: dict[str, Any],
    tokens: Tensor,
    missing: Mapping[int, Sequence[int]],
    removals: Removals,
) -> dict[tuple[int, int], Table]:
    """The tables of some windows, by window and layer: what one process of several does."""
    tables: dict[tuple[int, int], Table] = {}

    def keep(window: int, row: int, table: Table) -> None:
        tables[window, row] = table

    instrument, tokens = Instrument(anatomy, **settings), tokens.to(anatomy.device)
    sweep(anatomy, _MissingEffects(instrument, tokens, batches, missing, removals, keep))
    return tables


class _MissingEffects(Measurement):
    """Removals in the missing layers of some windows.

    Args:
        instrument: of the model
        tokens: all windows [N, W]
        batches: numbers of the windows of each batch
        missing: number of a window -> its missing layers
        asked: what is removed and read
        keep: takes the tables

    Attributes:
        finished: tables that were handed out, by window and layer
    """

    title = "effects"

    def __init__(
        self,
        instrument: Instrument,
        tokens: Tensor,
        batches: Sequence[Sequence[int]],
        missing: Mapping[int, Sequence[int]],
        asked: Removals,
        keep: Keep,
    ) -> None:
        super().__init__(instrument, [tokens[list(windows)] for windows in batches], asked.scope)
        self.numbers, self.missing, self.asked, self._keep = batches, missing, asked, keep
        self.finished: dict[tuple[int, int], Table] = {}

    @property
    def identity(self) -> str:
        positions = self.asked.positions
        marks = "" if positions is None else hashlib.sha256(positions.tobytes()).hexdigest()
        return self.key_of(self.asked.experts, marks)

    def is_wanted(self, batch: int) -> bool:
        return any(self.missing.get(window) for window in self.numbers[batch])

    def most_born(self, batch: int, row: int) -> int | None:
        if not self._is_missing(batch, row):
            return 0
        experts = range(self.instrument.anatomy.shape.num_experts)
        chosen = experts if self.asked.experts is None else set(experts).intersection(self.asked.experts)
        return None if self.asked.scope is Scope.POSITION else len(chosen)

    def keep(self, window: int, row: int, table: Table) -> None:
        """Hand out a table, if it was missing."""
        if row in self.missing.get(window, ()) and (window, row) not in self.finished:
            self.finished[window, row] = table
            self._keep(window, row, table)

    def state(self) -> dict[str, Array]:
        state = super().state()
        for (window, row), table in self.finished.items():
            state |= {f"{window} {row} {column}": values for column, values in table.items()}
        return state

    def restore(self, state: dict[str, Array]) -> None:
        super().restore(state)
        tables: dict[tuple[int, int], Table] = {}
        for name, values in state.items():
            window, row, column = name.split()
            tables.setdefault((int(window), int(row)), {})[column] = values
        for place, table in tables.items():
            self.keep(*place, table)

    def _is_missing(self, batch: int, row: int) -> bool:
        return any(row in self.missing.get(window, ()) for window in self.numbers[batch])

    def removals(self, batch: int, row: int, clean: CleanForward) -> Iterable[Removal]:
        if not self._is_missing(batch, row):
            return ()
        layer = _Layer(self, clean, row, self.numbers[batch])
        by_scope = {Scope.POSITION: layer.at_positions, Scope.SEQUENCE: layer.in_windows}
        return by_scope.get(self.asked.scope, layer.everywhere)()


class _Layer:
    """The removals in one MoE layer of a batch, and the tables that are made of them."""

    def __init__(self, job: _MissingEffects, clean: CleanForward, row: int, windows: Sequence[int]) -> None:
        self.job, self.clean, self.row, self.windows = job, clean, row, windows
        self.anatomy = job.instrument.anatomy

    def at_positions(self) -> Iterator[Removal]:
        """One window: every position that has a next token, every active expert that is asked for."""
        active = Active(self.clean, self.row, 0, self.job.asked, self.windows[0])
        marks = torch.nn.functional.one_hot(active.expert, self.anatomy.shape.num_experts).bool()

        def take(delta: Tensor, divergence: Tensor) -> None:
            self._keep([self._table(active, 0, delta, divergence)])

        if len(marks):
            yield Removal(self.row, {self.row: marks}, take, active.position)
        else:
            take(*torch.empty(2, 0, dtype=torch.float64))

    def in_windows(self) -> Iterator[Removal]:
        """Each expert removed at every position, read wherever it is active."""
        actives = [
            Active(self.clean, self.row, place, self.job.asked, window)
            for place, window in enumerate(self.windows)
        ]
        experts = torch.unique(torch.cat([active.expert for active in actives]))

        def take(delta: Tensor, divergence: Tensor) -> None:
            tables = []
            for place, active in enumerate(actives):
                which = torch.searchsorted(experts, active.expert)
                at = (which, torch.full_like(which, place), active.position)
                tables.append(self._table(active, place, delta[at], divergence[at]))
            self._keep(tables)

        return self._each(experts, take)

    def everywhere(self) -> Iterator[Removal]:
        """Each expert removed at every token; means over the window."""
        experts = torch.arange(self.anatomy.shape.num_experts, device=self.clean.tokens.device)
        experts = experts[self.job.asked.are_wanted(experts)]

        def take(delta: Tensor, divergence: Tensor) -> None:
            self._keep(
                [
                    self._means(place, experts, delta[:, place], divergence[:, place])
                    for place in range(len(self.windows))
                ]
            )

        return self._each(experts, take)

    def _each(self, experts: Tensor, take: Take) -> Iterator[Removal]:
        """Removal of each expert at every position. take: called with ΔCE and KL [experts, B, W − 1]."""
        batch, length = self.clean.tokens.shape
        shape = (len(experts), batch, length - 1)
        gathered = Gathered(shape, self.clean.tokens.device, take)
        for place, expert in enumerate(experts.tolist()):
            one = slice(place, place + 1)
            yield Removal(self.row, {self.row: marked(self.anatomy, expert)}, gathered.part(one))
        if not len(experts):
            take(gathered.delta, gathered.divergence)

    def _keep(self, tables: Sequence[Table]) -> None:
        for window, table in zip(self.windows, tables, strict=True):
            document = np.full(len(table["delta"]), window)
            self.job.keep(window, self.row, {"document": document, **table})

    def _table(self, active: "Active", place: int, delta: Tensor, divergence: Tensor) -> Table:
        """Of one window. place: of the window in the batch."""
        # Without active experts it is asked for before the losses are known.
        baseline = self.clean.losses[place, active.position] if len(active.position) else delta
        return active.table(self.anatomy.shape.layers[self.row], baseline, delta, divergence)

    def _means(self, place: int, experts: Tensor, delta: Tensor, divergence: Tensor) -> Table:
        """Of one window. delta, divergence: ΔCE and KL [experts, W − 1]."""
        count = len(experts)
        nothing = np.full(count, -1)
        baseline = float(self.clean.losses[place].mean()) if count else 0.0
        return {
            "position": nothing,
            "token": nothing,
            "layer": np.full(count, self.anatomy.shape.layers[self.row]),
            "expert": experts.cpu().numpy(),
            "gate_weight": mean_gate_weights(self.clean, self.row, place, experts),
            "rank": nothing,
            "baseline_loss": np.full(count, baseline),
            "delta": window_means(delta),
            "kl": window_means(divergence),
        }
