"""How much a token's routed output changes when one of its experts is removed (docs/methods.md 1.6).

g: gate weights as applied, G their sum over the active set A; f: outputs before weighting; y = Σ_A g f.
Source: RAZOR, https://arxiv.org/abs/2609.30465
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experts.rerouting import Entering, Rerouted
from experts.seam import ExpertOutputs

ROUTED_AGAIN = frozenset({"reroute", "frozen"})  # need the output of the expert that enters
BLOCK = 512  # tokens whose changes are in memory at once


@dataclass(frozen=True)
class Routed:
    """T tokens in one MoE layer, as they were routed and as they would be.

    Attributes:
        index: active experts' ids [T, k]
        weight: their gate weights g [T, k]
        outputs: rows of their outputs among `seen` [T, k]
        seen: the experts' outputs before weighting
        again: the routing without each of them; None where no form needs it
        entering: the experts that enter, likewise
    """

    index: Tensor
    weight: Tensor
    outputs: Tensor
    seen: ExpertOutputs
    again: Rerouted | None = None
    entering: Entering | None = None


def changes(routed: Routed, forms: Collection[str], num_experts: int) -> dict[str, Tensor]:
    """Return δ_i = ‖y − y^{−i}‖₂ of every token and active expert i, per form [T, k].

    reroute: the router chooses again without i, by its own rules: what pruning does. frozen: the experts that
        are chosen again keep their gate weights, and those that enter get theirs in proportion; the paper's
        closed form for routers that do not renormalise. loo: nobody enters, the others are rescaled to the
        same sum: g_i/(1 − g_i/G) ‖f_i − y/G‖. rcs: g_i ‖f_i − y/G‖.
    Where a form divides by nothing (loo: i has the whole gate weight) its δ is not finite.

    Args:
        routed: the tokens
        forms: of `criteria.razor.FORMS`
        num_experts: E
    """
    found: dict[str, list[Tensor]] = {form: [] for form in forms}
    for block in _blocks(routed, num_experts):
        for form in found:
            found[form].append(block.change(form))
    return {form: torch.cat(parts) for form, parts in found.items()}


@dataclass(frozen=True)
class _Block:
    """Some tokens, b of them, with M experts that may enter beside the k active ones; columns = k + M.

    Attributes:
        features: outputs f of the active experts, then of those that enter; 0 in unused columns [b, k + M, H]
        gate: g of the active ones, then 0 [b, k + M]
        again: gate weight of every column when the i-th active expert is removed [b, k, k + M]
        chosen: whether it is chosen then [b, k, k + M]
        k: active experts
    """

    features: Tensor
    gate: Tensor
    again: Tensor
    chosen: Tensor
    k: int

    def change(self, form: str) -> Tensor:
        """δ of one form [b, k]: the norm of Σ_columns coefficient · f."""
        if form == "reroute":
            return self._norm(self.gate[:, None] - self.again)
        if form == "frozen":
            return self._norm(self._frozen())
        gate, total = self.gate[:, : self.k], self.gate.sum(dim=1, keepdim=True)
        own = torch.eye(self.k, self.gate.shape[1], dtype=gate.dtype, device=gate.device)
        residual = gate * self._norm(own - (self.gate / total)[:, None])
        return residual if form == "rcs" else residual / (1 - gate / total)

    def _frozen(self) -> Tensor:
        """Coefficients [b, k, k + M] where the experts that stay keep their gate weight."""
        active = torch.arange(self.gate.shape[1], device=self.gate.device) < self.k
        stay = self.chosen & active
        gate = self.gate[:, None].expand_as(self.again)
        scale = (gate * stay).sum(dim=2, keepdim=True) / (self.again * stay).sum(dim=2, keepdim=True)
        if self.k == 1:  # nobody stays: the expert that enters has the weight that the router gives it
            scale = torch.ones_like(scale)
        return torch.where(stay, 0.0, torch.where(active, gate, -self.again * scale))

    def _norm(self, coefficients: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(torch.bmm(coefficients, self.features), dim=2)
        return norm


def _blocks(routed: Routed, num_experts: int) -> Iterator[_Block]:
    wide = torch.promote_types(routed.seen.outputs.dtype, torch.float32)
    for start in range(0, len(routed.index), BLOCK):
        yield _block(routed, slice(start, start + BLOCK), num_experts, wide)


def _block(routed: Routed, tokens: slice, num_experts: int, wide: torch.dtype) -> _Block:
    index, gate = routed.index[tokens], routed.weight[tokens].to(wide)
    features = routed.seen.outputs[routed.outputs[tokens]].to(wide)
    count, k = index.shape
    if routed.again is None or routed.entering is None:
        nothing = gate.new_zeros(count, k, k)
        return _Block(features, gate, nothing, nothing.bool(), k)
    columns, features = _with_entering(index, features, routed.entering, tokens)
    gate = nn.functional.pad(gate, (0, columns.shape[1] - k))
    ids = routed.again.index[tokens]
    every = gate.new_zeros(count, k, num_experts).scatter_(2, ids, routed.again.weight[tokens].to(wide))
    marks = torch.zeros_like(every, dtype=torch.bool).scatter_(2, ids, True)
    places = columns[:, None].expand(-1, k, -1)
    return _Block(features, gate, every.gather(2, places), marks.gather(2, places), k)


def _with_entering(
    index: Tensor, features: Tensor, entering: Entering, tokens: slice
) -> tuple[Tensor, Tensor]:
    """Columns for the experts that enter: ids [b, k + M] and outputs [b, k + M, H]; unused ones are 0."""
    k = index.shape[1]
    ends = torch.tensor([tokens.start, tokens.start + len(index)], device=index.device)
    first, last = torch.searchsorted(entering.token, ends).tolist()
    token = entering.token[first:last] - tokens.start
    counts = torch.bincount(token, minlength=len(index))
    place = k + torch.arange(len(token), device=index.device) - (counts.cumsum(0) - counts)[token]
    width = k + (int(counts.max()) if len(token) else 0)
    ids = nn.functional.pad(index, (0, width - k))
    ids[token, place] = entering.expert[first:last].to(ids.dtype)
    features = nn.functional.pad(features, (0, 0, 0, width - k))
    features[token, place] = entering.outputs[first:last].to(features.dtype)
    return ids, features
