"""The routing without each active expert of a token, from one of them: by the rule that most routers follow.

A router that ranks experts one by one puts the same expert in the place of whichever is removed, and the gate
weights of all others grow by a common factor. One routing without an expert shows who enters, with what
weight, and which factor it is. Whether a token follows the rule has to be checked with another routing.
"""

import torch
from torch import Tensor

TOLERANCE = 64.0  # roundings of the gate weights' format
MOST = 0.02  # relative; of short formats


def by_rule(
    index: Tensor, weight: Tensor, first: Tensor, second: Tensor, ids: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor]:
    """Return expert ids and gate weights without each of the active experts, [T, k, k] each.

    With s = g for the active experts and for the one that enters in proportion, the factor without i is
    Σ g / (Σ g − s_i + s_enters) where the sum is kept, and 1 / (1 − s_i / λ) for a softmax or sigmoid that is
    not renormalised (λ = ∞ for the sigmoid). Numbers of tokens that follow no such rule are meaningless.

    Args:
        index: active experts' ids [T, k]
        weight: their gate weights g [T, k]
        first: slot of the expert whose removal is known [T]
        second: slot of another one, with a large weight [T]
        ids: the experts chosen without the first [T, k]
        gates: their gate weights [T, k]
    """
    gate, gates = weight.double(), gates.double()
    same = ids[:, :, None] == index[:, None, :]
    new = (~same.any(dim=2)).long().argmax(dim=1, keepdim=True)
    kept = (gates[:, :, None] * same).sum(dim=1).gather(1, second[:, None])
    factor = kept / gate.gather(1, second[:, None])
    enters = gates.gather(1, new) / factor
    total, own = gate.sum(dim=1, keepdim=True), gate.gather(1, first[:, None])
    same_sum = total / (total - gate + enters)
    softmax = 1 / (1 - gate / own * (1 - 1 / factor))
    close = (same_sum.gather(1, first[:, None]) - factor).abs() <= tolerance(weight) * factor
    factors = torch.where(close, same_sum, softmax)
    return _replaced(index, ids.gather(1, new), gate, enters, factors)


def _replaced(
    index: Tensor, new: Tensor, gate: Tensor, enters: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor]:
    """The i-th of k rows has the new expert in the i-th slot, and is scaled by the i-th factor."""
    k = index.shape[1]
    place = torch.eye(k, dtype=torch.bool, device=index.device)
    ids = torch.where(place, new[:, :, None], index[:, None, :])
    gates = torch.where(place, enters[:, :, None], gate[:, None, :]) * factors[:, :, None]
    return ids, gates


def agrees(ids: Tensor, gates: Tensor, true_ids: Tensor, true_gates: Tensor) -> Tensor:
    """Whether two routings of the same tokens [T, k] are equal up to rounding and order, bool [T]."""
    ids, order = ids.sort(dim=1)
    true_ids, true_order = true_ids.sort(dim=1)
    gap = (gates.gather(1, order) - true_gates.double().gather(1, true_order)).abs().amax(dim=1)
    near = gap <= tolerance(true_gates) * true_gates.double().abs().amax(dim=1)
    return (ids == true_ids).all(dim=1) & near


def tolerance(weight: Tensor) -> float:
    """Relative, for gate weights of this format."""
    return min(TOLERANCE * torch.finfo(weight.dtype).eps, MOST)
