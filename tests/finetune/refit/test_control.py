"""Random plans get the same refit on the same text; rows before and after are those of plain forwards."""

import numpy as np
import pytest
import torch

from experts.ablation import restricted
from experts.errors import ExciseError
from experts.model import Model
from finetune.refit_control import JudgedRefit, refit_against_random
from finetune.refit_model import refit_experts, refitted
from tests.finetune.refit.test_refit import TEXT, olmoe, opened, plan_of  # noqa: F401 - a fixture
from tests.support.inputs import windows
from validate.chance import contest_of
from validate.loss import window_losses

HELD_OUT = windows(6, 32)


@pytest.fixture(scope="module")
def judged(olmoe: Model) -> JudgedRefit:  # noqa: F811
    return refit_against_random(olmoe, plan_of(olmoe), TEXT, held_out=HELD_OUT, plans=3, seed=5)


def test_the_numbers_are_those_of_plain_forwards(olmoe: Model, judged: JudgedRefit) -> None:  # noqa: F811
    plan = plan_of(olmoe)
    clean = window_losses(olmoe.network, HELD_OUT)
    randoms = contest_of(plan, olmoe.shape, plans=3, seed=5).randoms
    before, after = [], []
    for one in (plan, *randoms):
        with restricted(olmoe.anatomy, one):
            before.append((window_losses(olmoe.network, HELD_OUT) - clean).mean())
        with refitted(olmoe, refit_experts(olmoe, one, TEXT)):
            after.append((window_losses(olmoe.network, HELD_OUT) - clean).mean())
    assert judged.cost.before == pytest.approx(before[0])
    assert judged.cost.after == pytest.approx(after[0])
    np.testing.assert_allclose(judged.lead.before.values, before[1:])
    np.testing.assert_allclose(judged.lead.after.values, after[1:])
    assert judged.lead.lead_after == pytest.approx(np.mean(after[1:]) - after[0])
    assert judged.refit.plan.digest == plan.digest


def test_text_that_was_fitted_to_is_no_test(olmoe: Model) -> None:  # noqa: F811
    with pytest.raises(ExciseError, match="the refit"):
        refit_against_random(olmoe, plan_of(olmoe), TEXT, held_out=TEXT, plans=2)


def test_a_streamed_model_gives_the_same(olmoe: Model, judged: JudgedRefit) -> None:  # noqa: F811
    """Layers are read once for all plans."""
    streamed = opened(olmoe.folder, "streamed")
    found = refit_against_random(streamed, plan_of(streamed), TEXT, held_out=HELD_OUT, plans=3, seed=5)
    assert found.cost == judged.cost
    assert found.lead == judged.lead
    for one, other in zip(found.refit.layers, judged.refit.layers, strict=True):
        assert torch.equal(one.weights, other.weights)
