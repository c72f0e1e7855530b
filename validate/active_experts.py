"""Which removals of a window are read, and what is known of each without measuring it.

Shapes: N windows of W tokens, E experts, k active ones, L MoE layers; R removals.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experts.arrays import Array, Marks
from experts.modes import Scope
from experts.sweep.record import CleanForward

Table = dict[str, np.ndarray[Any, np.dtype[Any]]]


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


class Active:
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


def window_means(values: Tensor) -> Array:
    """Over the positions of a window: [experts, W − 1] -> [experts]."""
    return np.array([float(of_expert.mean()) for of_expert in values])


def mean_gate_weights(clean: CleanForward, row: int, place: int, experts: Tensor) -> Array:
    """Mean gate weight of each expert over the positions of a window where it is active [experts].

    nan for an expert that never is.
    """
    index, weight = clean.index[row][place], clean.weight[row][place].double()  # [W, k]
    hits = index[..., None] == experts  # [W, k, experts]
    count = hits.sum(dim=(0, 1))
    total = (weight[..., None] * hits).sum(dim=(0, 1))
    means: Array = torch.where(count > 0, total / count.clamp(min=1), torch.nan).cpu().numpy()
    return means
