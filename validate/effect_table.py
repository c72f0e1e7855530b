"""The raw table of effects: one row per removal of an expert, window by window (docs/methods.md, 1.3 and 2).

Shapes: N windows of W tokens, E experts, k active ones, L MoE layers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experts.ablation import marked
from experts.arrays import Array, Marks
from experts.effects.instrument import Instrument
from experts.effects.stream import CleanForward
from experts.memory import in_chunks
from experts.modes import Scope

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
    measure = {Scope.POSITION: _position, Scope.SEQUENCE: _sequence, Scope.CORPUS: _corpus}[removals.scope]
    numbers = list(missing)

    def work(start: int, stop: int) -> None:
        windows = numbers[start:stop]
        clean = instrument.clean_forward(tokens[windows], removals.scope)
        rows = set().union(*(missing[window] for window in windows))
        for row in sorted(rows):
            tables = measure(instrument, clean, row, windows, removals)
            for window, table in zip(windows, tables, strict=True):
                if row in missing[window]:
                    keep(window, row, {"document": np.full(len(table["delta"]), window), **table})

    in_chunks(len(numbers), size, work, "window")


def _position(
    instrument: Instrument, clean: CleanForward, row: int, windows: list[int], removals: Removals
) -> list[Table]:
    """One window: every position that has a next token, every active expert that is asked for."""
    active = _Active(clean, row, 0, removals, windows[0])
    marks = torch.nn.functional.one_hot(active.expert, instrument.anatomy.shape.num_experts).bool()
    delta, divergence = instrument.at_positions(clean, active.position, {row: marks})
    return [active.table(instrument.anatomy.shape.layers[row], delta, divergence)]


def _sequence(
    instrument: Instrument, clean: CleanForward, row: int, windows: list[int], removals: Removals
) -> list[Table]:
    """Each expert removed at every position, read wherever it is active."""
    actives = [_Active(clean, row, place, removals, window) for place, window in enumerate(windows)]
    experts = torch.unique(torch.cat([active.expert for active in actives]))
    delta, divergence = _everywhere(instrument, clean, row, experts)
    tables = []
    for place, active in enumerate(actives):
        which = torch.searchsorted(experts, active.expert)
        at = (which, torch.full_like(which, place), active.position)
        tables.append(active.table(instrument.anatomy.shape.layers[row], delta[at], divergence[at]))
    return tables


def _everywhere(
    instrument: Instrument, clean: CleanForward, row: int, experts: Tensor
) -> tuple[Tensor, Tensor]:
    """ΔCE and KL [experts, B, W − 1], float64, of B windows with each expert removed at every position."""
    shape = (len(experts), *clean.losses.shape)
    delta = torch.empty(shape, dtype=torch.float64, device=clean.tokens.device)
    divergence = torch.empty_like(delta)
    for place, expert in enumerate(experts):
        marks = marked(instrument.anatomy, int(expert))
        delta[place], divergence[place] = instrument.everywhere(clean, {row: marks})
    return delta, divergence


def _corpus(
    instrument: Instrument,
    clean: CleanForward,
    row: int,
    windows: list[int],  # noqa: ARG001 - the other scopes take some of them
    removals: Removals,
) -> list[Table]:
    """Each expert removed at every token; means over the window."""
    experts = torch.arange(instrument.anatomy.shape.num_experts, device=clean.tokens.device)
    experts = experts[removals.are_wanted(experts)]
    delta, divergence = _everywhere(instrument, clean, row, experts)
    return [
        _means_table(instrument, clean, row, place, experts, delta[:, place], divergence[:, place])
        for place in range(len(clean.tokens))
    ]


def _means_table(
    instrument: Instrument,
    clean: CleanForward,
    row: int,
    place: int,
    experts: Tensor,
    delta: Tensor,
    divergence: Tensor,
) -> Table:
    """Of one window. place: of the window in `clean`; delta, divergence: ΔCE and KL [experts, W − 1]."""
    count = len(experts)
    nothing = np.full(count, -1)
    return {
        "position": nothing,
        "token": nothing,
        "layer": np.full(count, instrument.anatomy.shape.layers[row]),
        "expert": experts.cpu().numpy(),
        "gate_weight": _mean_gate_weights(clean, row, place, experts),
        "rank": nothing,
        "baseline_loss": np.full(count, float(clean.losses[place].mean())),
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
        baseline: loss of the next token without any removal, nats [R]
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
        self.baseline = clean.losses[place, self.position]

    def table(self, layer: int, delta: Tensor, divergence: Tensor) -> Table:
        """Return the columns of the table, but for the window's number. layer: decoder layer index."""
        tensors = {
            "position": self.position,
            "token": self.token,
            "layer": torch.full_like(self.position, layer),
            "expert": self.expert,
            "gate_weight": self.weight.double(),
            "rank": self.rank,
            "baseline_loss": self.baseline,
            "delta": delta,
            "kl": divergence,
        }
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
