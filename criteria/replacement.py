"""How much a token's routed output changes when one of its experts is removed (docs/methods.md 1.6).

g: gate weights as applied, G their sum over the active set A; f: outputs before weighting; y = Σ_A g f.
Source: RAZOR, https://arxiv.org/abs/2609.30465
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experts.rerouting import Entering, Rerouted
from experts.rows import take_rows
from experts.seam import ExpertOutputs

ROUTED_AGAIN = frozenset({"reroute", "frozen"})  # need the output of the expert that enters
BLOCK = 256  # tokens whose changes are in memory at once


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
    for block in _blocks(routed, num_experts, forms):
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
        chosen: whether it is chosen then [b, k, k + M]; None where no form needs it
        k: active experts
    """

    features: Tensor
    gate: Tensor
    again: Tensor
    chosen: Tensor | None
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
        assert self.chosen is not None, "made for this form"
        stay = self.chosen & active
        gate = self.gate[:, None].expand_as(self.again)
        scale = (gate * stay).sum(dim=2, keepdim=True) / (self.again * stay).sum(dim=2, keepdim=True)
        if self.k == 1:  # nobody stays: the expert that enters has the weight that the router gives it
            scale = torch.ones_like(scale)
        return torch.where(stay, 0.0, torch.where(active, gate, -self.again * scale))

    def _norm(self, coefficients: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(torch.bmm(coefficients, self.features), dim=2)
        return norm


def _blocks(routed: Routed, num_experts: int, forms: Collection[str]) -> Iterator[_Block]:
    wide = torch.promote_types(routed.seen.outputs.dtype, torch.float32)
    starts = range(0, len(routed.index), BLOCK)
    if routed.again is None or routed.entering is None:
        for start in starts:
            yield _active_alone(routed, slice(start, start + BLOCK), wide)
        return
    column, width = _columns(routed.entering, len(routed.index))
    ends = torch.tensor([*starts, len(routed.index)], device=column.device)
    pairs = torch.searchsorted(routed.entering.token, ends).tolist()
    for start, first, last in zip(starts, pairs[:-1], pairs[1:], strict=True):
        own = routed.entering.token[first:last] - start
        part = _Part(slice(start, start + BLOCK), slice(first, last), own, column[first:last], width)
        yield _with_entering(routed, routed.again, routed.entering, part, num_experts, "frozen" in forms)


@dataclass(frozen=True)
class _Part:
    """Some tokens, and the p pairs of one of them and an expert that enters.

    Attributes:
        tokens: which
        pairs: which
        token: of every pair, counted in this part [p]
        column: of every pair, counted in its token [p]
        width: M, columns for experts that enter
    """

    tokens: slice
    pairs: slice
    token: Tensor
    column: Tensor
    width: int


def _columns(entering: Entering, tokens: int) -> tuple[Tensor, int]:
    """The column of every expert that enters, counted from 0 in its token [P], and how many they are."""
    counts = torch.bincount(entering.token, minlength=tokens)
    first = counts.cumsum(0) - counts
    column = torch.arange(len(entering.token), device=counts.device) - first[entering.token]
    return column, int(counts.max()) if tokens else 0


def _active_alone(routed: Routed, tokens: slice, wide: torch.dtype) -> _Block:
    gate = routed.weight[tokens].to(wide)
    nothing = gate.new_zeros(*gate.shape, gate.shape[1])
    features = take_rows(routed.seen.outputs, routed.outputs[tokens]).to(wide)
    return _Block(features, gate, nothing, None, gate.shape[1])


def _with_entering(
    routed: Routed, again: Rerouted, entering: Entering, part: _Part, num_experts: int, marked: bool
) -> _Block:
    wide = torch.promote_types(routed.seen.outputs.dtype, torch.float32)
    index, gate = routed.index[part.tokens], routed.weight[part.tokens].to(wide)
    (count, k), more = index.shape, (0, part.width)
    place = part.token, k + part.column
    # One copy of the outputs: the rows of the further columns are overwritten.
    features = take_rows(routed.seen.outputs, nn.functional.pad(routed.outputs[part.tokens], more)).to(wide)
    features[:, k:] = 0
    features[place] = entering.outputs[part.pairs].to(wide)
    columns = nn.functional.pad(index, more)
    columns[place] = entering.expert[part.pairs].to(index.dtype)
    ids, places = again.index[part.tokens], columns[:, None].expand(-1, k, -1)
    every = gate.new_zeros(count, k, num_experts).scatter_(2, ids, again.weight[part.tokens].to(wide))
    chosen = torch.zeros_like(every, dtype=torch.bool).scatter_(2, ids, True) if marked else None
    return _Block(
        features,
        nn.functional.pad(gate, more),
        every.gather(2, places),
        None if chosen is None else chosen.gather(2, places),
        k,
    )
