"""Checks 4 and 5: does the instrument see effects where there are some, and none where there can be none?"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from criteria.text.windows import Windows
from experts.ablation import marked
from experts.anatomy import Anatomy, MoELayer
from experts.effects.instrument import Instrument
from experts.modes import Scope
from experts.seam import Forward, intercepted
from experts.sweep.record import CleanForward
from validate.rig.check import Check

LOCAL = 32  # tokens on which single effects are checked


@torch.no_grad()
def check_local(anatomy: Anatomy, first: Windows) -> Check:
    """Check 4: a removal at one position (mode zero) acts from there on, and only if the expert is active.

    In the lowest, middle and highest MoE layer an active and an inactive expert are removed at the middle
    position. Effects must be exactly 0 before that position, exactly 0 everywhere for the inactive expert,
    and not 0 for at least one active one.
    """
    instrument = Instrument(anatomy, probabilities=False, enters=False)
    tokens = first.tensor(anatomy.device)[:, :LOCAL]
    position = (tokens.shape[1] - 1) // 2
    rows = _some_rows(anatomy)
    wrong, moved = 0, 0
    with intercepted(anatomy, _token_by_token):
        clean = instrument.clean_forward(tokens, Scope.SEQUENCE)
        for row in rows:
            active, inactive = _one_of_each(anatomy, clean.index[row][0, position])
            delta = _removed_at(instrument, clean, row, position, active)
            wrong += int(delta[:position].count_nonzero())
            moved += int(delta[position:].any())
            if inactive is not None:
                wrong += int(_removed_at(instrument, clean, row, position, inactive).count_nonzero())
    evidence = (
        f"{wrong} losses of {2 * len(rows)} cells moved that must not, "
        f"{moved} of {len(rows)} removals of an active expert did something"
    )
    return Check("4 effects only where they can be", wrong == 0 and moved > 0, evidence)


def _one_of_each(anatomy: Anatomy, chosen: Tensor) -> tuple[int, int | None]:
    """Of the experts that a token chose [k]: an active one and an inactive one; None where all are active."""
    active = chosen.tolist()
    inactive = [expert for expert in range(anatomy.shape.num_experts) if expert not in active]
    return active[0], inactive[0] if inactive else None


def _removed_at(instrument: Instrument, clean: CleanForward, row: int, position: int, expert: int) -> Tensor:
    """ΔCE at every position [W − 1] without the expert at one of them."""
    length, num_experts = clean.tokens.shape[1], instrument.anatomy.shape.num_experts
    gone = torch.zeros(length, num_experts, dtype=torch.bool, device=clean.tokens.device)
    gone[position, expert] = True
    delta, _ = instrument.everywhere(clean, {row: gone})
    return delta[0]


@torch.no_grad()
def check_planted(anatomy: Anatomy, first: Windows) -> Check:
    """Check 5: the removal (mode zero) of an expert that computes nothing moves no loss.

    In the lowest, middle and highest MoE layer the most used expert is overwritten with zeros; its removal
    before that must move some loss.
    """
    instrument = Instrument(anatomy, probabilities=False, enters=False)
    tokens = first.tensor(anatomy.device)[:, :LOCAL]
    alive, dead = 0, 0
    for row in _some_rows(anatomy):
        clean = instrument.clean_forward(tokens, Scope.SEQUENCE)
        expert = int(torch.bincount(clean.index[row].flatten()).argmax())
        alive += _moved_without(instrument, clean, row, expert)
        with _emptied(anatomy.layers[row], expert):
            clean = instrument.clean_forward(tokens, Scope.SEQUENCE)
            dead += _moved_without(instrument, clean, row, expert)
    evidence = f"{dead} losses moved by removing an empty expert, {alive} when it was not empty"
    return Check("5 a planted expert has no effect", dead == 0 and alive > 0, evidence)


def _moved_without(instrument: Instrument, clean: CleanForward, row: int, expert: int) -> int:
    """How many losses the removal of the expert at every position moves."""
    delta, _ = instrument.everywhere(clean, {row: marked(instrument.anatomy, expert)})
    return int(delta.count_nonzero())


def _some_rows(anatomy: Anatomy) -> list[int]:
    """The lowest, middle and highest of the L MoE layers."""
    return sorted({0, len(anatomy.layers) // 2, len(anatomy.layers) - 1})


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
