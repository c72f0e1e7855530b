"""How many experts a plan may keep.

Impossible budgets are refused from sizes alone, before any calibration.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from experts.errors import ExciseError, SettingError
from experts.shape import Shape

BudgetScope = Literal["layer", "global"]


@dataclass(frozen=True)
class Budget:
    """How much to keep.

    Attributes:
        total: experts kept in the whole model
        scope: layer = spread evenly over the layers, or by `counts`; global = wherever the scores are
            highest, or by `counts`
        floor: fewest experts kept in a layer
        text: the budget in words, printed in reports
        multiple: every layer's count is a multiple of it
        counts: counts given by hand, in the order of the MoE layers [L]; in scope global those that were
            chosen by another measurement than the scores
        asked: the total before rounding to `multiple`
    """

    total: int
    scope: BudgetScope
    floor: int
    text: str
    multiple: int = 1
    counts: tuple[int, ...] | None = None
    asked: int | None = None

    def notes(self, layers: int) -> list[str]:
        """What can be said before any work: what multiple_of changed, and what serving may not like."""
        moved = self.asked not in (None, self.total)
        said = (
            [f"{self.text} keeps {self.total} experts in all, {self.asked} without multiple_of"]
            if moved
            else []
        )
        return said + (serving_notes(self.of_layers(layers)) if self.scope == "layer" else [])

    def of_layers(self, layers: int) -> tuple[int, ...]:
        """Experts that each layer keeps [L], of a budget that leaves nothing to the scores (scope layer)."""
        return self.counts or (self.total // layers,) * layers

    def fixed(self, layers: int) -> tuple[int, ...] | None:
        """Experts that each layer keeps [L], where the scores do not decide it; None where they do."""
        return self.of_layers(layers) if self.scope == "layer" else self.counts

    def kept(self, shape: Shape) -> tuple[object, ...]:
        """What decides which plans it allows: equal for two budgets that always come to the same plan.

        In scope global a layer keeps at least what the others cannot. Where every layer is at its floor
        nothing is left to decide.
        """
        layers, unit = shape.num_layers, max(self.multiple, shape.groups)
        floor = max(self.floor, self.total - shape.num_experts // unit * unit * (layers - 1))
        if self.fixed(layers) or floor * layers == self.total:
            return self.of_layers(layers)
        return ("global", self.total, floor, unit)

    def check_kept(self, counts: Sequence[int]) -> None:
        """The last look at a plan's counts per layer: what was promised is what is kept.

        Raises ExciseError that names the promise.
        """
        wrong = [count for count in counts if count % self.multiple or count < self.floor]
        fixed = self.fixed(len(counts)) or tuple(counts)
        if wrong or sum(counts) != self.total or tuple(counts) != fixed:
            each = f"at least {self.floor} a layer, multiples of {self.multiple}"
            found = f"the plan keeps {list(counts)}; please report it"
            raise ExciseError(f"{self.text}: promised {self.total} experts in all, {each}; {found}")


def deepest(budgets: Iterable[Budget]) -> dict[BudgetScope, Budget]:
    """The budget of every scope that removes most: a search goes down to it, past the others."""
    found: dict[BudgetScope, Budget] = {}
    for budget in budgets:
        if budget.scope not in found or budget.total < found[budget.scope].total:
            found[budget.scope] = budget
    return found


def serving_notes(counts: Iterable[int]) -> list[str]:
    """A warning for counts that expert parallelism may not divide."""
    if not (odd := sorted({count for count in counts if count % 8})):
        return []
    shown = ", ".join(map(str, odd))
    note = f"layers keep {shown} experts, not a multiple of 8, which expert-parallel serving may require"
    return [f"{note} (prune.multiple_of: 8)"]


def from_fraction(
    shape: Shape, fraction: float, scope: BudgetScope, floor: int | None = None, multiple: int = 1
) -> Budget:
    """Remove a share of the experts, in (0, 1).

    It is rounded to whole experts per layer (scope layer), or in the whole model (scope global).
    """
    if not 0 < fraction < 1:
        raise SettingError(
            f"fraction is {fraction}; it is the share of experts to remove and lies between 0 and 1, "
            "for example 0.5"
        )
    text = f"fraction={fraction:g} scope={scope}"
    if scope == "layer":
        return from_keep(
            shape, shape.num_experts - _half_up(fraction * shape.num_experts), scope, floor, text, multiple
        )
    every = shape.total
    return from_total(shape, every - _half_up(fraction * every), scope, floor, text, multiple)


def from_keep(
    shape: Shape, keep: int, scope: BudgetScope, floor: int | None = None, text: str = "", multiple: int = 1
) -> Budget:
    """keep: experts kept per layer; on average per layer in scope global."""
    return from_total(
        shape, keep * shape.num_layers, scope, floor, text or f"keep={keep} scope={scope}", multiple
    )


def from_counts(shape: Shape, counts: Mapping[int, int], multiple: int = 1) -> Budget:
    """counts: decoder layer -> experts kept there; layers that are not named keep all."""
    if unknown := counts.keys() - set(shape.layers):
        raise SettingError(f"keep names layer {min(unknown)}; the MoE layers are {list(shape.layers)}")
    for layer, count in counts.items():
        if count > shape.num_experts:
            raise SettingError(f"keep: layer {layer} is to keep {count} experts and has {shape.num_experts}")
        if count < shape.smallest or not shape.is_even(count):
            needs = f"at least {shape.smallest}" + (
                f", a multiple of {shape.groups} (router groups)" if shape.groups > 1 else ""
            )
            raise SettingError(f"keep: layer {layer} is to keep {count} experts; routing needs {needs}")
        if count % multiple:
            raise SettingError(
                f"keep: layer {layer} is to keep {count} experts, not a multiple of multiple_of = {multiple}"
            )
    kept = tuple(counts.get(layer, shape.num_experts) for layer in shape.layers)
    if untouched := [layer for layer in shape.layers if layer not in counts and shape.num_experts % multiple]:
        raise SettingError(
            f"keep does not name layer {untouched[0]}, which so keeps all {shape.num_experts} experts, "
            f"not a multiple of multiple_of = {multiple}; "
            f"name every layer, or take a number that divides {shape.num_experts}"
        )
    if sum(kept) == shape.num_experts * len(kept):
        raise SettingError(
            f"keep removes no expert: all {shape.num_experts} per layer would be kept; prune more"
        )
    text = "keep=" + ",".join(f"{layer}:{count}" for layer, count in sorted(counts.items()))
    return Budget(sum(kept), "layer", shape.smallest, text, multiple, kept)


def from_total(
    shape: Shape, total: int, scope: BudgetScope, floor: int | None, text: str, multiple: int = 1
) -> Budget:
    """total: experts kept in the whole model; in scope layer a multiple of L."""
    asked, layers = total, shape.num_layers
    if multiple > 1:
        text += f" multiple_of={multiple}"
        _check_multiple(shape, multiple)
        # No layer can keep more than the largest multiple in it.
        most = shape.num_experts // multiple * multiple * layers
        total = (
            _rounded(total // layers, multiple) * layers
            if scope == "layer"
            else min(most, _rounded(total, multiple))
        )
    least = shape.smallest if floor is None else floor
    floor = -(-least // multiple) * multiple if scope == "global" else least
    return _checked(shape, Budget(total, scope, floor, text, multiple, None, asked))


def _check_multiple(shape: Shape, multiple: int) -> None:
    if not shape.is_even(multiple):
        raise SettingError(
            f"multiple_of is {multiple}: {shape.groups} router groups keep equally many; "
            "take a multiple of them"
        )
    if shape.num_experts // multiple * multiple < shape.smallest:
        raise SettingError(
            f"multiple_of is {multiple}: no number of experts "
            f"from {shape.smallest} (fewest that can route) to {shape.num_experts} divides by it; "
            "take a smaller one"
        )


def _rounded(count: int, multiple: int) -> int:
    """The nearest multiple, the larger one of two."""
    return multiple * _half_up(count / multiple)


def _half_up(number: float) -> int:
    return math.floor(number + 0.5 + 1e-9)


def _checked(shape: Shape, budget: Budget) -> Budget:
    _check_removes(shape, budget)
    _check_routes(shape, budget)
    _check_groups(shape, budget)
    _check_floor(shape, budget)
    return budget


def _check_removes(shape: Shape, budget: Budget) -> None:
    if budget.total >= shape.total:
        raise ExciseError(
            f"{budget.text} removes no expert: all {shape.num_experts} per layer would be kept; prune more"
        )


def _check_routes(shape: Shape, budget: Budget) -> None:
    """Every token still finds as many experts as it uses."""
    keep = budget.total / shape.num_layers
    if keep < shape.top_k:
        raise ExciseError(
            f"{budget.text} keeps {keep:g} of {shape.num_experts} experts per layer, "
            f"but every token uses top_k = {shape.top_k}; "
            f"keep at least {shape.smallest} (fraction ≤ {1 - shape.smallest / shape.num_experts:.3g})"
        )
    if keep < shape.smallest:
        raise ExciseError(
            f"{budget.text} keeps {keep:g} experts per layer in {shape.groups} router groups, "
            f"of which a token uses {shape.top_groups}: "
            f"too few for top_k = {shape.top_k}; keep at least {shape.smallest}"
        )


def _check_groups(shape: Shape, budget: Budget) -> None:
    """Router groups keep equally many."""
    keep = budget.total / shape.num_layers
    shared = budget.total // shape.num_layers if budget.scope == "layer" else budget.total
    if not shape.is_even(shared):
        raise ExciseError(
            f"{budget.text} keeps {keep:g} experts per layer, "
            f"which {shape.groups} router groups cannot share evenly "
            f"(a router would choose wrongly); {_next_even(shape, budget)}"
        )


def _check_floor(shape: Shape, budget: Budget) -> None:
    """The smallest count of a layer can route, and leaves the others theirs."""
    keep = budget.total / shape.num_layers
    if budget.floor > keep and budget.floor - budget.multiple < shape.smallest:
        raise ExciseError(
            f"{budget.text} keeps {keep:g} experts per layer, "
            f"and the fewest that can route are {budget.floor}; keep more"
        )
    if not shape.smallest <= budget.floor <= keep:
        raise SettingError(
            f"floor is {budget.floor}; it must lie between {shape.smallest} "
            f"and the mean number kept, {keep:g}"
        )


def _next_even(shape: Shape, budget: Budget) -> str:
    below = shape.even_below(budget.total // shape.num_layers)
    fits = [keep for keep in (below, below + shape.groups) if shape.smallest <= keep < shape.num_experts]
    return "use " + " or ".join(
        f"keep: {keep} (fraction {1 - keep / shape.num_experts:.4g})" for keep in fits
    )
