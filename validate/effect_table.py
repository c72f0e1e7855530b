"""The raw table of effects: one row per intervention, window by window (METHODS 1.3, 2)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experts.ablation import marked
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
class Cells:
    """Which removals of a layer are measured. experts: None = all (active ones, where a token counts).

    positions: bool [L, N, W − 1], the positions that are read; None = all. Not for scope corpus, which reads means.
    """

    scope: Scope
    experts: tuple[int, ...] | None = None
    positions: NDArray[np.bool_] | None = None

    def wanted(self, experts: Tensor) -> Tensor:
        """Which of these expert ids are asked for (bool, same shape)."""
        if self.experts is None:
            return torch.ones_like(experts, dtype=torch.bool)
        return torch.isin(experts, torch.tensor(self.experts, device=experts.device))

    def read(self, layer: int, window: int, experts: Tensor) -> Tensor:
        """Which of the active experts [W − 1, k] of a window are measured (bool, same shape)."""
        wanted = self.wanted(experts)
        return (
            wanted
            if self.positions is None
            else wanted & torch.from_numpy(self.positions[layer, window]).to(experts.device)[:, None]
        )


def measure(
    instrument: Instrument, tokens: Tensor, missing: Mapping[int, Sequence[int]], cells: Cells, keep: Keep
) -> None:
    """Calls keep(window, layer position, table) for every window and layer in `missing`, of tokens [N, W].

    Columns. document: number of the window; position: in the window, 0-based; token: its id; layer: decoder layer; gate_weight: applied;
    rank: of the expert among the active ones, 0 = largest gate weight; baseline_loss: of the next token, nats; delta, kl: of the removal.
    In scope corpus a row is the mean over a window: position, token and rank are empty, gate_weight is the mean where e is active.
    """
    size = 1 if cells.scope is Scope.POSITION else instrument.windows_at_once(tokens, MOST_WINDOWS)
    of_scope = {Scope.POSITION: _position, Scope.SEQUENCE: _sequence, Scope.CORPUS: _corpus}[cells.scope]
    numbers = list(missing)

    def work(start: int, stop: int) -> None:
        part = numbers[start:stop]
        clean = instrument.clean_forward(tokens[part], cells.scope)
        for layer in sorted({layer for number in part for layer in missing[number]}):
            for number, table in zip(part, of_scope(instrument, clean, layer, part, cells), strict=True):
                if layer in missing[number]:
                    keep(number, layer, {"document": np.full(len(table["delta"]), number), **table})

    in_chunks(len(numbers), size, work, "window")


def _position(
    instrument: Instrument,
    clean: CleanForward,
    layer: int,
    windows: list[int],
    cells: Cells,
) -> list[Table]:
    """One window: every position that has a next token, every active expert that is asked for."""
    active = _Active(clean, layer, 0, cells, windows[0])
    marks = torch.nn.functional.one_hot(active.expert, instrument.anatomy.shape.num_experts).bool()
    delta, divergence = instrument.at_positions(clean, active.position, {layer: marks})
    return [active.table(instrument.anatomy.shape.layers[layer], delta, divergence)]


def _sequence(
    instrument: Instrument,
    clean: CleanForward,
    layer: int,
    windows: list[int],
    cells: Cells,
) -> list[Table]:
    """Each expert removed at every position, read wherever it is active."""
    found = [_Active(clean, layer, number, cells, window) for number, window in enumerate(windows)]
    measured = torch.unique(torch.cat([active.expert for active in found]))
    shape = (len(measured), *clean.losses.shape)
    delta, divergence = (
        torch.empty(shape, dtype=torch.float64, device=clean.tokens.device) for _ in range(2)
    )
    for row, expert in enumerate(measured):
        delta[row], divergence[row] = instrument.everywhere(
            clean, {layer: marked(instrument.anatomy, int(expert))}
        )
    tables = []
    for number, active in enumerate(found):
        which = torch.searchsorted(measured, active.expert)
        at = (which, torch.full_like(which, number), active.position)
        tables.append(active.table(instrument.anatomy.shape.layers[layer], delta[at], divergence[at]))
    return tables


def _corpus(
    instrument: Instrument,
    clean: CleanForward,
    layer: int,
    windows: list[int],  # noqa: ARG001 - the other scopes take some of them
    cells: Cells,
) -> list[Table]:
    """Each expert removed at every token; means over the window."""
    device = clean.tokens.device
    experts = torch.arange(instrument.anatomy.shape.num_experts, device=device)
    experts = experts[cells.wanted(experts)]
    both = [
        instrument.everywhere(clean, {layer: marked(instrument.anatomy, int(expert))}) for expert in experts
    ]
    found = []
    for number in range(len(clean.tokens)):
        index, weight = clean.index[layer][number], clean.weight[layer][number].double()
        hits = index[..., None] == experts  # [W, k, experts]
        count = hits.sum(dim=(0, 1))
        gate = torch.where(
            count > 0, (weight[..., None] * hits).sum(dim=(0, 1)) / count.clamp(min=1), torch.nan
        )
        nothing = np.full(len(experts), -1)
        found.append(
            {
                "position": nothing,
                "token": nothing,
                "layer": np.full(len(experts), instrument.anatomy.shape.layers[layer]),
                "expert": experts.cpu().numpy(),
                "gate_weight": gate.cpu().numpy(),
                "rank": nothing,
                "baseline_loss": np.full(len(experts), float(clean.losses[number].mean())),
                "delta": np.array([float(delta[number].mean()) for delta, _ in both]),
                "kl": np.array([float(divergence[number].mean()) for _, divergence in both]),
            }
        )
    return found


class _Active:
    """The active experts of one window at one layer, one entry per (position, expert): position, expert, weight, rank [R].

    window: its place in `clean`; number: its place among all windows.
    """

    def __init__(self, clean: CleanForward, layer: int, window: int, cells: Cells, number: int) -> None:
        index, weight = clean.index[layer][window, :-1], clean.weight[layer][window, :-1]
        order = torch.argsort(
            weight, dim=1, descending=True, stable=True
        )  # routers need not sort their choice
        index, weight = index.gather(1, order), weight.gather(1, order)
        self.position, self.rank = torch.nonzero(cells.read(layer, number, index), as_tuple=True)
        self.expert, self.weight = index[self.position, self.rank], weight[self.position, self.rank]
        self.token, self.baseline = clean.tokens[window, self.position], clean.losses[window, self.position]

    def table(self, layer: int, delta: Tensor, divergence: Tensor) -> Table:
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
