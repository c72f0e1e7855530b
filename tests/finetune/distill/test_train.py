"""The training of one layer: the block is the pruned model's, steps are Adam's, the best weights are kept."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from experts.ablation import restricted
from experts.anatomy import Anatomy, dissect
from experts.errors import ExciseError
from experts.inner_activations import DOWN
from experts.plan import Plan
from experts.seam import Forward, intercepted
from finetune.distill.block import ROUTER, check_block, trainable_block
from finetune.distill.examples import Collected, Examples, entering_block
from finetune.distill.settings import Local
from finetune.distill.train import distilled
from tests.support import tiny

KEPT = (0, 1, 4, 5)
UP = "gate_up_proj"


def olmoe(dtype: torch.dtype = torch.float32) -> Anatomy:
    return dissect(tiny.build("olmoe", num_hidden_layers=1).to(dtype))


def examples(dtype: torch.dtype = torch.float32, number: int = 64) -> Examples:
    """Random hidden states and targets; every fourth token is unseen."""
    generator = torch.Generator().manual_seed(3)
    entering, target = (torch.randn(number, 32, generator=generator).to(dtype) for _ in range(2))
    return Examples(entering, target.float(), torch.arange(number) % 4 == 3)


def trained(anatomy: Anatomy, given: Examples, local: Local, unchanged: list[int]) -> Any:
    with torch.no_grad(), trainable_block(anatomy.layers[0], KEPT, 8, {}) as block:
        return distilled(block, given, local, unchanged)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_block_is_that_of_the_restricted_model(family: str) -> None:
    """And the model is as before afterwards."""
    anatomy = dissect(tiny.build(family))
    before = {name: tensor.clone() for name, tensor in anatomy.model.state_dict().items()}
    plan, outputs = Plan(8, dict.fromkeys(anatomy.shape.layers, KEPT)), list[Tensor]()

    def see(row: int, run: Forward, *call: Tensor) -> Tensor:
        routed = run(*call)
        if row == 0:
            outputs.append(routed)
        return routed

    with torch.no_grad(), entering_block(anatomy.layers[0]) as entering:
        with intercepted(anatomy, see), restricted(anatomy, plan):
            tiny.logits(anatomy.model)
        with trainable_block(anatomy.layers[0], KEPT, 8, {}) as block:
            torch.testing.assert_close(block(entering[0]), outputs[0])
        check_block(anatomy.layers[0], KEPT, 8, entering[0], outputs[0])
        with pytest.raises(ExciseError, match="computes something else on its own"):
            check_block(anatomy.layers[0], KEPT, 8, entering[0], 1.01 * outputs[0])
    after = anatomy.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def by_hand(anatomy: Anatomy, given: Examples, local: Local) -> dict[str, Tensor]:
    """Adam on an OLMoE block written out, token by token and expert by expert."""
    layer = anatomy.layers[0]
    ids = list(KEPT)
    router = layer.router.get_parameter("weight").detach()[ids].clone().requires_grad_()
    up = layer.experts.get_parameter(UP).detach()[ids].clone().requires_grad_()
    down = layer.experts.get_parameter(DOWN).detach()[ids].clone().requires_grad_()
    groups = [{"params": [up, down], "lr": local.lr}, {"params": [router], "lr": local.router_lr}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(local.seed << 16)
    seen = [token for token in range(len(given.entering)) if token % 4 != 3]
    for step in range(local.steps):
        for group, rate in zip(optimizer.param_groups, (local.lr, local.router_lr), strict=True):
            group["lr"] = float(rate * (1 + torch.cos(torch.tensor(torch.pi * step / local.steps))) / 2)
        total = torch.zeros(())
        for drawn in torch.randint(len(seen), (local.tokens,), generator=generator).tolist():
            hidden, wanted = given.entering[seen[drawn]], given.target[seen[drawn]]
            gates, chosen = functional.linear(hidden, router).softmax(-1).topk(3)
            found = torch.zeros(32)
            for gate, place in zip(gates, chosen.tolist(), strict=True):
                first, second = functional.linear(hidden, up[place]).chunk(2)
                found = found + gate * functional.linear(functional.silu(first) * second, down[place])
            total = total + (found - wanted).square().mean() / local.tokens
        optimizer.zero_grad()
        (total / given.target.square().mean()).backward()
        optimizer.step()
    return {UP: up.detach(), DOWN: down.detach(), ROUTER: router.detach()}


def test_the_steps_are_those_of_a_plain_loop() -> None:
    anatomy, given, local = olmoe(), examples(), Local(steps=4, tokens=16, lr=1e-2, router_lr=3e-2)
    expected = by_hand(anatomy, given, local)
    found, weights = trained(anatomy, given, local, [])
    assert found.step == 4
    assert found.after < found.before
    assert weights.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(weights[name], values, rtol=1e-3, atol=1e-4)


def test_weights_that_get_worse_are_not_kept() -> None:
    anatomy = olmoe()
    found, weights = trained(anatomy, examples(), Local(steps=20, lr=30.0), [])
    assert (found.step, found.after) == (0, found.before)
    assert torch.equal(weights[DOWN], anatomy.layers[0].experts.get_parameter(DOWN)[list(KEPT)])


def test_no_step_trains_on_unseen_tokens() -> None:
    """Whatever they should give, the last step's weights are the same."""
    given = examples()
    other = Examples(given.entering, given.target.clone(), given.unseen)
    other.target[given.unseen] = given.target[given.unseen].flip(0)
    local = Local(steps=10, tokens=32)
    (first, weights), (second, same) = (trained(olmoe(), one, local, []) for one in (given, other))
    assert first.step == second.step == 10
    assert first.before != second.before
    for name, values in weights.items():
        torch.testing.assert_close(same[name], values, rtol=1e-4, atol=1e-6)


def test_experts_that_stay_as_they_are() -> None:
    anatomy = olmoe()
    found, weights = trained(anatomy, examples(), Local(steps=10, lr=1e-2), [2])
    assert found.step
    for name in (UP, DOWN):
        before = anatomy.layers[0].experts.get_parameter(name)
        assert torch.equal(weights[name][2], before[KEPT[2]])
        assert not torch.equal(weights[name][1], before[KEPT[1]])
    assert torch.equal(weights[ROUTER][2], anatomy.layers[0].router.get_parameter("weight")[KEPT[2]])


def test_steps_smaller_than_bfloat16_add_up() -> None:
    """Each of 200 steps of 2e-5 is lost in weights of about .2; together they are 4e-3, and are not."""
    anatomy = olmoe(torch.bfloat16)
    before = anatomy.layers[0].experts.get_parameter(DOWN)[list(KEPT)]
    found, weights = trained(anatomy, examples(torch.bfloat16), Local(steps=200, lr=2e-5), [])
    assert found.after < found.before
    assert weights[DOWN].dtype == torch.bfloat16
    moved = (weights[DOWN] != before) & (before.abs() > 0.1)
    assert moved.sum() > 0.2 * (before.abs() > 0.1).sum()


def test_every_eighth_window_is_unseen_and_padding_is_left_out() -> None:
    collected = Collected(num_windows=9, length=2)
    values = torch.arange(18.0)[:, None]
    readable = torch.ones(18, dtype=torch.bool)
    readable[[3, 15]] = False
    collected.add(values[:10], -values[:10], readable[:10])
    collected.add(values[10:], -values[10:], readable[10:])
    found = collected.examples()
    assert found.entering[:, 0].tolist() == [token for token in range(18) if token not in (3, 15)]
    assert torch.equal(found.target, -found.entering)
    assert found.entering[found.unseen][:, 0].tolist() == [14]  # of the eighth window, 14 and 15


def test_of_two_windows_the_last_is_unseen() -> None:
    collected = Collected(num_windows=2, length=3)
    collected.add(torch.zeros(6, 1), torch.zeros(6, 1), torch.ones(6, dtype=torch.bool))
    assert collected.examples().unseen.tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "local: steps is 0"),
        ({"tokens": 0}, "local: tokens is 0"),
        ({"seed": -1}, "local: seed is -1"),
        ({"lr": 0.0}, "local: lr is 0.0; a learning rate is a number above 0"),
        ({"router_lr": float("nan")}, "local: router_lr is nan; a learning rate"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        Local(**options)
