"""Plans refitted side by side, and held-out text measured on the way: the layers are read once for all."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from criteria.text.windows import Windows
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.errors import ExciseError
from experts.plan import Plan
from finetune.refit.held_out import HeldOut
from finetune.refit.layers import Traveller, refit_layers
from finetune.refit.passage import CleanPassage, Passage
from finetune.refit.request import Request
from finetune.refit.result import FULL, RefittedLayer


@dataclass(frozen=True)
class RefittedPlan:
    """What is left of the refit of a plan.

    Attributes:
        layers: with their weights, upwards [L]; empty unless asked for
        losses: of held-out windows [N], nats per token; None = none were given
    """

    layers: tuple[RefittedLayer, ...]
    losses: Array | None


def refit_plans(
    anatomy: Anatomy,
    plans: Sequence[Plan],
    request: Request,
    wanted: Collection[str],
    held_out: Windows | None = None,
    batch: int = 8,
) -> list[RefittedPlan]:
    """Refit plans of one model, all with the same text and settings.

    Args:
        anatomy: the unpruned model
        plans: what is kept
        request: the text, and how
        wanted: digests of plans whose weights are kept
        held_out: windows to measure the refitted models on
        batch: held-out windows per forward

    Raises:
        ExciseError: a layer cannot be refitted, or no expert has as many tokens as inner units.
    """
    clean = CleanPassage(anatomy, request.text, request.batch) if len(plans) > 1 else None
    rows = [_Rows(plan.digest in wanted) for plan in plans]
    measured = [HeldOut(anatomy, plan, held_out, batch) if held_out else None for plan in plans]
    travellers = [
        Traveller(Passage(anatomy, plan, request.text, request.batch, clean), own.take, one)
        for plan, own, one in zip(plans, rows, measured, strict=True)
    ]
    refit_layers(travellers, request)
    if request.form == FULL:
        for own in rows:
            own.check()
    return [
        RefittedPlan(tuple(own.layers), one.losses if one else None)
        for own, one in zip(rows, measured, strict=True)
    ]


class _Rows:
    """Takes the layers of one plan. wanted: they are kept."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.layers: list[RefittedLayer] = []
        self._most: list[tuple[int, int]] = []  # tokens of the busiest expert, and inner units, by layer

    def take(self, layer: RefittedLayer) -> None:
        self._most.append((max(layer.rows), layer.inner))
        if self.wanted:
            self.layers.append(layer)

    def check(self) -> None:
        """Refuse text on which no expert has as many tokens as inner units."""
        if all(rows < inner for rows, inner in self._most):
            most, inner = max(self._most)[0], min(inner for _, inner in self._most)
            raise ExciseError(
                f"text: no expert gets as many tokens as it has inner units ({most} of {inner}); "
                "give more text"
            )
