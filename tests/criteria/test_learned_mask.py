"""Learned masks: the masked forward against a restricted model, slopes against differences, budgets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import experts
from criteria import learned_mask as module
from criteria.budget import from_fraction, from_total
from criteria.by_name import resolve
from criteria.learned_mask import halves, learned_mask
from criteria.mask_budget import MaskBudget
from criteria.mask_gates import masked_gates
from criteria.removal_room import Room
from experts.ablation import block_inputs, restricted
from experts.anatomy import Anatomy, dissect
from experts.errors import ExciseError
from experts.plan import Plan
from experts.routing import routing_without
from experts.seam import Forward, intercepted
from experts.shape import Shape
from experts.stored_arrays import StoredArrays
from tests.criteria.test_causal import setting
from tests.support import tiny
from tests.support.inputs import windows

KEPT = (0, 2, 3, 5, 6, 7)  # as many of both router groups


def marks_of(anatomy: Anatomy) -> Tensor:
    marks = torch.zeros(len(anatomy.layers), 8, dtype=torch.bool)
    marks[:, list(KEPT)] = True
    return marks


@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_the_masked_forward_is_that_of_the_pruned_model(family: str) -> None:
    anatomy = dissect(tiny.build64(family))
    plan = Plan(8, dict.fromkeys(anatomy.shape.layers, KEPT))
    with restricted(anatomy, plan):
        expected = tiny.logits(anatomy.model)
    with masked_gates(anatomy, marks_of(anatomy), torch.rand(len(anatomy.layers), 8)):
        found = tiny.logits(anatomy.model)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def nudged_loss(anatomy: Anatomy, cell: tuple[int, int], amount: float) -> float:
    """The loss when the survival of one expert is `amount` more, without any slopes."""
    with block_inputs(anatomy, range(len(anatomy.layers))) as entered:

        def edit(row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
            removed = ~marks_of(anatomy)[row]
            ids, gates = routing_without(anatomy, row, entered.pop(row).reshape(len(index), -1), removed)
            if row != cell[0]:
                return run(hidden, ids, gates)
            if not removed[cell[1]]:
                return run(hidden, ids, gates * (1 + amount * (ids == cell[1])))
            return run(hidden, ids, gates) + run(hidden, index, weight * amount * (index == cell[1]))

        with intercepted(anatomy, edit):
            return float(tiny.logits(anatomy.model).square().mean())


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_slopes_are_those_of_differences(family: str) -> None:
    """Two kept and two removed experts. Routers round to float32, in which smaller differences drown."""
    anatomy = dissect(tiny.build64(family))
    survival = torch.zeros(len(anatomy.layers), 8, dtype=torch.float64, requires_grad=True)
    with masked_gates(anatomy, marks_of(anatomy), survival):
        anatomy.model(input_ids=tiny.ids(), use_cache=False).logits.square().mean().backward()
    assert survival.grad is not None
    for cell in ((0, 2), (1, 5), (0, 1), (1, 4)):
        step = 1e-2
        slope = (nudged_loss(anatomy, cell, step) - nudged_loss(anatomy, cell, -step)) / (2 * step)
        assert float(survival.grad[cell]) == pytest.approx(slope, rel=1e-3, abs=2e-6)
        assert abs(slope) > 1e-4


@pytest.mark.parametrize(
    ("scope", "groups", "multiple"), [("layer", 1, 1), ("layer", 2, 1), ("global", 1, 1), ("global", 2, 4)]
)
def test_the_budget_is_exact(scope: str, groups: int, multiple: int) -> None:
    """The masks that are tried, the expected number after a retraction, and steps along the tangent plane."""
    shape = Shape((0, 1, 2), 8, 2, groups, 1)
    budget = from_total(shape, 12, scope, None, "test", multiple)  # type: ignore[arg-type]
    protected = np.zeros((3, 8), bool)
    protected[1, 3] = True
    mask = MaskBudget(Room(shape, budget, protected))
    draw = torch.Generator().manual_seed(0)
    logits = mask.retracted(torch.randn(24, generator=draw, dtype=torch.float64))
    kept = mask.kept(logits)
    assert kept.sum() == 12
    assert kept[11], "protected"
    slopes = mask.tangent(torch.randn(24, generator=draw, dtype=torch.float64), logits)
    for block, count in zip(mask.blocks, mask.survivors, strict=True):
        assert float(torch.sigmoid(logits[block]).sum()) == pytest.approx(count, abs=1e-9)
        moved = torch.sigmoid(logits[block] + 1e-4 * slopes[block]).sum() - count
        assert abs(float(moved)) < 1e-6
    assert (slopes[11] == 0).all()


def planted() -> Anatomy:
    """No token is routed to experts 0 to 3 of any layer: their removal changes nothing."""
    anatomy = dissect(tiny.build("gpt_oss"))
    with torch.no_grad():
        for layer in anatomy.layers:
            bias = next(getattr(module, key) for module, key in layer.router_tensors if key == "bias")
            bias[:4] = -50.0
    return anatomy


def test_training_finds_the_experts_that_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an arbitrary ranking to the four experts of every layer that are used, at a KL of 0; a run that is
    interrupted and taken up again finds the same. Three times the rate, to be quick.
    """
    monkeypatch.setattr(module, "RATE", 0.3)
    made = setting(planted(), windows(16, 12), batch=8)
    budget = from_fraction(made.shape, 0.5, "layer")
    made = replace(made, budget=budget, partial=StoredArrays(tmp_path / "part.safetensors", "key"))
    whole = learned_mask(made, 50, 9, "random", 0)
    assert whole["checks"][0, 1] > 0.01
    assert whole["checks"][:, 1].min() < 1e-6
    np.testing.assert_array_equal(
        np.sort(np.argsort(whole["score"], axis=1)[:, 4:], axis=1), [[4, 5, 6, 7]] * 3
    )
    made.partial.clear()

    check, count = module._Training.check, 0

    def stop_at_the_third(self: module._Training) -> None:
        nonlocal count
        check(self)
        count += 1
        if count == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(module._Training, "check", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        learned_mask(made, 50, 9, "random", 0)
    monkeypatch.setattr(module._Training, "check", check)
    again = learned_mask(made, 50, 9, "random", 0)
    np.testing.assert_array_equal(again["score"], whole["score"])
    np.testing.assert_array_equal(again["checks"], whole["checks"])


def test_training_ends_where_nothing_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate of 0 no check is lower than the first: two checks, and the start is what is taken."""
    monkeypatch.setattr(module, "RATE", 0.0)
    found = learned_mask(setting(dissect(tiny.build("olmoe")), windows(4, 12)), 100, 2, "reap_sum", 0)
    np.testing.assert_array_equal(found["checks"][:, 0], [0, 10, 20])
    assert found["checks"][0, 1] == found["checks"][2, 1]


def test_halves_share_every_domain_and_no_window() -> None:
    text = windows(8, domains=2)
    train, other = halves(text)
    assert sorted(train.domain) == sorted(other.domain) == [0, 0, 1, 1]
    both = {row.tobytes() for row in train.tokens} | {row.tobytes() for row in other.tokens}
    assert len(both) == 8
    with pytest.raises(ExciseError, match="two windows or more"):
        halves(text.select(np.array([0])))


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    folder = tiny.save(tiny.build("olmoe"), tmp_path / "model")
    made = setting(experts.load(folder, memory="streamed").anatomy, windows(2))
    with pytest.raises(ExciseError, match="learned_mask trains through the whole model"):
        learned_mask(made, 1, 1, "reap_sum", 0)
    with pytest.raises(ExciseError, match="learned_mask: start=causal_removal is measured itself; use a"):
        resolve("learned_mask:start=causal_removal")
