"""Checks 4 and 5: does the instrument see effects where there are some, and none where there can be none?"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.ablation import marked
from experts.anatomy import Anatomy, MoELayer
from experts.decoder import Part
from experts.effects.outcome import token_losses
from experts.effects.removal import RemovalBranch, Take, only_at
from experts.modes import Mode
from experts.seam import Forward, intercepted
from experts.sweep.branch import Branch
from experts.sweep.record import CleanForward
from validate.rig.check import Check
from validate.rig.probe import Probe

LOCAL = 32  # tokens on which single effects are checked


class EffectProbe(Probe):
    """Removals (mode zero) in the lowest, the middle and the highest MoE layer."""

    def __init__(self, anatomy: Anatomy, tokens: Tensor) -> None:
        super().__init__(anatomy, tokens[:, :LOCAL])
        self.rows = sorted({0, len(anatomy.layers) // 2, len(anatomy.layers) - 1})

    def arrived(self, clean: CleanForward, logits: Tensor) -> None:
        clean.losses = token_losses(logits, clean.tokens).double()


class LocalProbe(EffectProbe):
    """Check 4: a removal at one position acts from there on, and only if the expert is active.

    An active and an inactive expert are removed at the middle position. Effects must be exactly 0 before that
    position, exactly 0 everywhere for the inactive expert, and not 0 for at least one active one.
    """

    results = ("wrong", "moved")
    wrong, moved = 0, 0

    @property
    def position(self) -> int:
        """Where experts are removed."""
        return (self.tokens.shape[1] - 1) // 2

    def around(self, part: Part) -> AbstractContextManager[None]:
        return intercepted(part.anatomy, _token_by_token)

    def born(self, row: int, clean: CleanForward) -> Iterator[Branch]:
        if row not in self.rows:
            return
        active, inactive = _one_of_each(self.anatomy, clean.index[row][0, self.position])
        yield self._removal(row, active, self._see_active)
        if inactive is not None:
            yield self._removal(row, inactive, self._see_inactive)

    def checks(self) -> list[Check]:
        evidence = (
            f"{self.wrong} losses of {2 * len(self.rows)} cells moved that must not, "
            f"{self.moved} of {len(self.rows)} removals of an active expert did something"
        )
        return [Check("4 effects only where they can be", self.wrong == 0 and self.moved > 0, evidence)]

    def _removal(self, row: int, expert: int, take: Take) -> Branch:
        marks = only_at(self.tokens, self.position, marked(self.anatomy, expert))
        return _TokenByToken(
            row=row, begins_at_experts=False, removed={row: marks}, mode=Mode.ZERO, take=take
        )

    def _see_active(self, delta: Tensor, _: Tensor) -> None:
        self.wrong += int(delta[0, : self.position].count_nonzero())
        self.moved += int(delta[0, self.position :].any())

    def _see_inactive(self, delta: Tensor, _: Tensor) -> None:
        self.wrong += int(delta.count_nonzero())


class PlantedProbe(EffectProbe):
    """Check 5: the removal of an expert that computes nothing moves no loss.

    The most used expert is overwritten with zeros; its removal before that must move some loss.
    """

    results = ("alive", "dead", "empty")
    alive, dead = 0, 0

    def __init__(self, anatomy: Anatomy, tokens: Tensor) -> None:
        super().__init__(anatomy, tokens)
        self.empty: dict[str, list[float]] = {}  # MoE layer -> losses without it, over the clean ones

    def born(self, row: int, clean: CleanForward) -> Iterator[Branch]:
        if row not in self.rows:
            return
        expert = int(torch.bincount(clean.index[row].flatten()).argmax())
        removed = {row: marked(self.anatomy, expert)}

        def see_alive(delta: Tensor, _: Tensor) -> None:
            self.alive += int(delta.count_nonzero())

        def see_empty(delta: Tensor, _: Tensor) -> None:
            self.empty[str(row)] = delta.flatten().tolist()

        def see_dead(delta: Tensor, _: Tensor) -> None:
            before = delta.new_tensor(self.empty.pop(str(row))).view_as(delta)
            self.dead += int((delta != before).count_nonzero())

        yield RemovalBranch(row=row, begins_at_experts=False, removed=removed, mode=Mode.ZERO, take=see_alive)
        for marks, take in (({}, see_empty), (removed, see_dead)):
            yield _Emptied(
                row=row, begins_at_experts=False, removed=marks, mode=Mode.ZERO, expert=expert, take=take
            )

    def checks(self) -> list[Check]:
        evidence = f"{self.dead} losses moved by removing an empty expert, {self.alive} when it was not empty"
        return [Check("5 a planted expert has no effect", self.dead == 0 and self.alive > 0, evidence)]


@dataclass(frozen=True, kw_only=True)
class _TokenByToken(RemovalBranch):
    """A removal where the experts of one token run at a time."""

    @contextmanager
    def change(self, part: Part) -> Iterator[None]:
        with intercepted(part.anatomy, _token_by_token), super().change(part):
            yield


@dataclass(frozen=True, kw_only=True)
class _Emptied(RemovalBranch):
    """A removal in a model one of whose experts computes nothing.

    Attributes:
        expert: its id, in the layer that the branch is born in
    """

    expert: int

    @contextmanager
    def change(self, part: Part) -> Iterator[None]:
        with ExitStack() as stack:
            for row, layer in zip(part.rows, part.anatomy.layers, strict=True):
                if row == self.row:
                    stack.enter_context(_emptied(layer, self.expert))
            stack.enter_context(super().change(part))
            yield


def _one_of_each(anatomy: Anatomy, chosen: Tensor) -> tuple[int, int | None]:
    """Of the experts that a token chose [k]: an active one and an inactive one; None where all are active."""
    active = chosen.tolist()
    inactive = [expert for expert in range(anatomy.shape.num_experts) if expert not in active]
    return active[0], inactive[0] if inactive else None


def _token_by_token(row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG001
    """Run the experts of one token at a time.

    Grouped kernels round by the size of a group, so an edited token would move the last bit of others.
    """
    outputs = [run(hidden[i : i + 1], index[i : i + 1], weight[i : i + 1]) for i in range(len(hidden))]
    return torch.cat(outputs)


@contextmanager
def _emptied(layer: MoELayer, expert: int) -> Iterator[None]:
    """All parameters of an expert are 0, so its output is; written back bit by bit."""
    before = [(parameter, parameter[expert].clone()) for parameter in layer.weights.values()]
    try:
        for parameter, _ in before:
            parameter[expert] = 0
        yield
    finally:
        for parameter, values in before:
            parameter[expert] = values
