"""The raw table of effects: one row per removal of an expert, window by window (docs/methods.md, 1.3 and 2).

Shapes: N windows of W tokens, E experts, k active ones, L MoE layers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experts.ablation import marked
from experts.arrays import Array, Marks
from experts.effects.instrument import Instrument, Measurement
from experts.effects.removal import Gathered, Removal, Take
from experts.memory import in_chunks
from experts.modes import Scope
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep

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
Table = dict[str, np.ndarray[Any, np.dtype[Any]]]
Keep = Callable[[int, int, Table], None]


@dataclass(frozen=True)
class Removals:
    """Which experts are removed, and where.

    Attributes:
        scope: where an expert is removed, and what is read
        experts: expert ids; None = all (in scopes position and sequence, the active ones)
        positions: the positions that are read [L, N, W − 1]; None = all. Not for scope corpus, which reads
            means.
    """

    scope: Scope
    experts: tuple[int, ...] | None = None
    positions: Marks | None = None

    def are_wanted(self, experts: Tensor) -> Tensor:
        """Return which of these expert ids are removed (bool, same shape)."""
        if self.experts is None:
            return torch.ones_like(experts, dtype=torch.bool)
        return torch.isin(experts, torch.tensor(self.experts, device=experts.device))

    def are_read(self, row: int, window: int, experts: Tensor) -> Tensor:
        """Return which removals of active experts are read.

        Args:
            row: place of the layer among the L MoE layers
            window: number of the window
            experts: active experts of every position that has a next token [W − 1, k]

        Returns:
            Marks [W − 1, k].
        """
        wanted = self.are_wanted(experts)
        if self.positions is None:
            return wanted
        return wanted & torch.from_numpy(self.positions[row, window]).to(experts.device)[:, None]


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
    numbers = list(missing)

    def work(start: int, stop: int) -> None:
        windows = numbers[start:stop]
        batches = [windows[first : first + size] for first in range(0, len(windows), size)]
        sweep(instrument.anatomy, _MissingEffects(instrument, tokens, batches, missing, removals, keep))

    streamed = instrument.anatomy.weights.streamed
    in_chunks(len(numbers), len(numbers) if streamed else size, work, "window")


class _MissingEffects(Measurement):
    """Removals in the missing layers of some windows.

    Args:
        instrument: of the model
        tokens: all windows [N, W]
        batches: numbers of the windows of each batch
        missing: number of a window -> its missing layers
        asked: what is removed and read
        keep: takes the tables
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
        self.numbers, self.missing, self.asked, self.keep = batches, missing, asked, keep

    def removals(self, batch: int, row: int, clean: CleanForward) -> Iterable[Removal]:
        windows = self.numbers[batch]
        if not any(row in self.missing[window] for window in windows):
            return ()
        layer = _Layer(self, clean, row, windows)
        by_scope = {Scope.POSITION: layer.at_positions, Scope.SEQUENCE: layer.in_windows}
        return by_scope.get(self.asked.scope, layer.everywhere)()


class _Layer:
    """The removals in one MoE layer of a batch, and the tables that are made of them."""

    def __init__(self, job: _MissingEffects, clean: CleanForward, row: int, windows: Sequence[int]) -> None:
        self.job, self.clean, self.row, self.windows = job, clean, row, windows
        self.anatomy = job.instrument.anatomy

    def at_positions(self) -> Iterator[Removal]:
        """One window: every position that has a next token, every active expert that is asked for."""
        active = _Active(self.clean, self.row, 0, self.job.asked, self.windows[0])
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
            _Active(self.clean, self.row, place, self.job.asked, window)
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
            if self.row in self.job.missing[window]:
                document = np.full(len(table["delta"]), window)
                self.job.keep(window, self.row, {"document": document, **table})

    def _table(self, active: "_Active", place: int, delta: Tensor, divergence: Tensor) -> Table:
        """Of one window. place: of the window in the batch."""
        baseline = self.clean.losses[place, active.position]
        return active.table(self.anatomy.shape.layers[self.row], baseline, delta, divergence)

    def _means(self, place: int, experts: Tensor, delta: Tensor, divergence: Tensor) -> Table:
        """Of one window. delta, divergence: ΔCE and KL [experts, W − 1]."""
        count = len(experts)
        nothing = np.full(count, -1)
        return {
            "position": nothing,
            "token": nothing,
            "layer": np.full(count, self.anatomy.shape.layers[self.row]),
            "expert": experts.cpu().numpy(),
            "gate_weight": _mean_gate_weights(self.clean, self.row, place, experts),
            "rank": nothing,
            "baseline_loss": np.full(count, float(self.clean.losses[place].mean())),
            "delta": _means(delta),
            "kl": _means(divergence),
        }


def _means(values: Tensor) -> Array:
    """Over the positions of a window: [experts, W − 1] -> [experts]."""
    return np.array([float(of_expert.mean()) for of_expert in values])


def _mean_gate_weights(clean: CleanForward, row: int, place: int, experts: Tensor) -> Array:
    """Mean gate weight of each expert over the positions of a window where it is active [experts].

    nan for an expert that never is.
    """
    index, weight = clean.index[row][place], clean.weight[row][place].double()  # [W, k]
    hits = index[..., None] == experts  # [W, k, experts]
    count = hits.sum(dim=(0, 1))
    total = (weight[..., None] * hits).sum(dim=(0, 1))
    means: Array = torch.where(count > 0, total / count.clamp(min=1), torch.nan).cpu().numpy()
    return means


class _Active:
    """The active experts of one window at one layer that are read, one entry per (position, expert).

    Attributes:
        position: in the window [R]
        rank: of the expert among the active ones, 0 = largest gate weight [R]
        expert: id [R]
        weight: gate weight as applied [R]
        token: id of the token at the position [R]
    """

    def __init__(self, clean: CleanForward, row: int, place: int, removals: Removals, window: int) -> None:
        """Find them. place: of the window in `clean`; window: its number among all windows."""
        index, weight = clean.index[row][place, :-1], clean.weight[row][place, :-1]
        # Routers need not sort their choice.
        order = torch.argsort(weight, dim=1, descending=True, stable=True)
        index, weight = index.gather(1, order), weight.gather(1, order)
        self.position, self.rank = torch.nonzero(removals.are_read(row, window, index), as_tuple=True)
        self.expert, self.weight = index[self.position, self.rank], weight[self.position, self.rank]
        self.token = clean.tokens[place, self.position]

    def table(self, layer: int, baseline: Tensor, delta: Tensor, divergence: Tensor) -> Table:
        """Return the columns of the table, but for the window's number.

        Args:
            layer: decoder layer index
            baseline: loss of the next token without any removal, nats [R]
            delta: ΔCE, nats [R]
            divergence: KL, nats [R]
        """
        tensors = {
            "position": self.position,
            "token": self.token,
            "layer": torch.full_like(self.position, layer),
            "expert": self.expert,
            "gate_weight": self.weight.double(),
            "rank": self.rank,
            "baseline_loss": baseline,
            "delta": delta,
            "kl": divergence,
        }
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
