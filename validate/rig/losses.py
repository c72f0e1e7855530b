"""Checks 1, 2, 3 and 6: the losses of a window, interventions that leave no trace, and restricted = cut."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from criteria.text.windows import Windows
from experts.ablation import ablated, marked, restricted
from experts.anatomy import Anatomy
from experts.decoder import Part
from experts.effects.outcome import token_losses
from experts.errors import ExciseError
from experts.modes import Mode
from experts.plan import Plan
from experts.sweep.branch import Branch
from experts.sweep.record import CleanForward
from validate.loss import mean_losses
from validate.rig.check import Check
from validate.rig.cutting import different_blocks, recorded_blocks
from validate.rig.probe import Probe


class LossProbe(Probe):
    """The loss of a window: clean, under a plan, under removals, and clean again.

    Args:
        anatomy: the unpruned model
        first: the window
        plan: what the model is restricted and cut to
    """

    results = ("loss", "unique", "count", "different")

    def __init__(self, anatomy: Anatomy, first: Windows, plan: Plan) -> None:
        super().__init__(anatomy, first.tensor(anatomy.device))
        self.first, self.plan, self.count = first, plan, 0
        self.loss: dict[str, float] = {}  # clean, model's, restricted, after
        self.unique = 0.0
        self.different: list[str] = []  # blocks that compute something else when they are cut

    def arrived(self, clean: CleanForward, logits: Tensor) -> None:
        self.loss["clean"] = self.mean(logits)
        # The library's own loss of these logits, which the model returns where it is given labels.
        model: Any = self.anatomy.model
        theirs = model.loss_function(logits=logits, labels=clean.tokens, vocab_size=logits.shape[-1])
        self.loss["model's"] = float(theirs)
        losses = token_losses(logits, clean.tokens).flatten()
        self.count = len(losses)
        self.unique = len(torch.unique(losses)) / self.count

    def whole(self) -> Iterator[Branch]:
        yield _Changed(row=None, name="restricted", probe=self, context=self._restricted)
        for mode in Mode:
            # Not every router can do without one expert.
            context = self._without_one(mode)
            yield _Changed(row=None, name=f"mode {mode}", probe=self, context=context, may_fail=True)
        yield _Changed(row=None, name="after", probe=self, context=lambda _: nullcontext())

    def mean(self, logits: Tensor) -> float:
        """Mean cross-entropy of the window."""
        return float(mean_losses(logits, self.tokens, self.first)[0])

    def checks(self) -> list[Check]:
        return [self._own_loss(), self._lifted(), self._unique(), self._cut()]

    @contextmanager
    def _restricted(self, part: Part) -> Iterator[None]:
        plan = self.plan.of_layers(part.anatomy.shape.layers)
        with recorded_blocks(part.anatomy) as calls, restricted(part.anatomy, plan):
            yield
        self.different += different_blocks(part.anatomy, plan, calls)

    def _without_one(self, mode: Mode) -> Callable[[Part], AbstractContextManager[None]]:
        """Without expert 0 of the lowest MoE layer."""
        shape, device = self.anatomy.shape, self.anatomy.device
        means = torch.zeros(shape.num_layers, shape.num_experts, 1, device=device)
        removed = {0: marked(self.anatomy, 0)}
        return lambda part: ablated(part.anatomy, part.of(removed), mode, means)

    def _own_loss(self) -> Check:
        """Check 1: |own mean − the model's own loss| ≤ 1e-4 nats.

        1e-2 in half precision, whose loss the model itself rounds.
        """
        ours, theirs = self.loss["clean"], self.loss["model's"]
        tolerance = 1e-4 if self.anatomy.model.dtype in (torch.float32, torch.float64) else 1e-2
        evidence = f"own {ours:.6f}, model's {theirs:.6f}, tolerance {tolerance:g}"
        return Check("1 own loss = model's loss", abs(ours - theirs) <= tolerance, evidence)

    def _lifted(self) -> Check:
        """Check 2: after a restriction, and a removal in every mode, the loss is what it was, bit by bit."""
        before, inside, after = (self.loss[name] for name in ("clean", "restricted", "after"))
        evidence = f"before {before:.17g}, restricted {inside:.17g}, after {after:.17g}"
        return Check("2 lifted intervention = baseline", before == after, evidence)

    def _unique(self) -> Check:
        """Check 3: more than half of the losses at different positions are different numbers."""
        evidence = f"{self.unique:.0%} of {self.count} losses are unique, more than 50 % needed"
        return Check("3 losses differ across positions", self.unique > 0.5, evidence)

    def _cut(self) -> Check:
        """Check 6: every restricted block gives, bit by bit, what a copy of it gives that is cut."""
        evidence = f"{len(self.different)} of {len(self.anatomy.layers)} blocks differ"
        if self.different:
            evidence += f", first {self.different[0]}"
        return Check("6 restricted = cut", not self.different, evidence)


@dataclass(frozen=True, kw_only=True)
class _Changed(Branch):
    """A whole forward under an intervention.

    Attributes:
        name: what its loss is kept under
        probe: takes the loss
        context: the intervention on some layers
        may_fail: whether not every model allows it
    """

    name: str
    probe: LossProbe
    context: Callable[[Part], AbstractContextManager[None]]
    may_fail: bool = False

    def change(self, part: Part) -> AbstractContextManager[None]:
        return self.context(part)

    def arrived(self, clean: CleanForward, logits: Tensor) -> None:  # noqa: ARG002
        self.probe.loss[self.name] = self.probe.mean(logits)

    def forgives(self, error: ExciseError) -> bool:  # noqa: ARG002
        return self.may_fail
