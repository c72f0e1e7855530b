"""One factor a layer: by numpy, taken only where it helps on other text, and written as the full refit is."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import prune
from experts.errors import ExciseError
from experts.inner_activations import DOWN
from experts.model import Model
from finetune.refit.result import Refit
from finetune.refit.scale import Scale
from finetune.refit_model import refit_experts, refitted
from tests.finetune.refit.test_equations import INNER, TOKENS, WIDTH, K, batches
from tests.finetune.refit.test_refit import TEXT, opened, plan_of
from tests.support import tiny
from tests.support.sweeps import windows


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return opened(tiny.save(tiny.build("olmoe"), tmp_path_factory.mktemp("scale") / "model"))


@pytest.fixture(scope="module")
def refit(olmoe: Model) -> Refit:
    return refit_experts(olmoe, plan_of(olmoe), TEXT, form="scale")


def filled(signs: tuple[float, ...]) -> tuple[Scale, np.ndarray, np.ndarray, np.ndarray]:
    """Equations of four batches, W, R and E; a sign turns what a batch lacks."""
    weights = np.random.default_rng(7).normal(size=(K, INNER, WIDTH))
    scale, given, lacked = Scale(torch.from_numpy(weights)), [], []
    for number, ((features, noise, dense), sign) in enumerate(zip(batches(), signs, strict=True)):
        given.append(dense @ weights.reshape(-1, WIDTH))
        lacked.append(sign * 0.3 * given[-1] + 0.01 * noise.numpy())
        scale.add(number % 2, features, torch.from_numpy(lacked[-1]))
    return scale, weights, np.concatenate(given), np.concatenate(lacked)


def test_the_factor_is_a_least_squares_solution() -> None:
    scale, weights, given, lacked = filled((1, 1, 1, 1))
    factor = np.linalg.lstsq(given.reshape(-1, 1), lacked.reshape(-1), rcond=None)[0].item()
    change = scale.solution(0.0)
    np.testing.assert_allclose(change.numpy(), factor * weights, rtol=1e-9)
    assert scale.left(change) == pytest.approx(np.square(lacked - factor * given).sum(), rel=1e-9)
    assert scale.left(None) == pytest.approx(np.square(lacked).sum())
    assert scale.rows.sum() == 2 * 4 * TOKENS
    assert scale.best_ridge() == 0.0


def test_a_factor_that_does_not_help_on_the_other_half_is_not_taken() -> None:
    """One half lacks what the other one has too much of."""
    scale = filled((1, -1, 1, -1))[0]
    assert scale.best_ridge() == math.inf
    assert not scale.solution(math.inf).any()


def test_all_kept_experts_of_a_layer_get_one_factor(olmoe: Model, refit: Refit) -> None:
    full = refit_experts(olmoe, plan_of(olmoe), TEXT, ridge=1e-6)
    for layer, change in zip(olmoe.anatomy.layers, refit.layers, strict=True):
        before = layer.experts.get_parameter(DOWN)[list(refit.plan.kept[layer.index])]
        ratio = change.weights / before
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
        assert change.after <= change.before
        assert not change.unchanged
    assert full.layers[0].after < refit.layers[0].after < refit.layers[0].before
    assert full.digest != refit.digest


def test_little_text_is_enough(olmoe: Model) -> None:
    """One number is asked for, not a number for every inner unit."""
    refit_experts(olmoe, plan_of(olmoe), windows(2, 4), form="scale")


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_written(family: str, tmp_path: Path) -> None:
    model = opened(tiny.save(tiny.build(family), tmp_path / "model"))
    refit = refit_experts(model, plan_of(model), TEXT, form="scale")
    with refitted(model, refit):
        expected = tiny.logits(model.network)
    prune.export(model, refit.plan, tmp_path / "out", refit=refit)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(tiny.logits(written.eval()), expected)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "were multiplied by one factor a layer, chosen by least squares on 256 tokens" in card


def test_another_form_is_refused(olmoe: Model) -> None:
    with pytest.raises(ExciseError, match="form 'rows': expected one of full, scale"):
        refit_experts(olmoe, plan_of(olmoe), TEXT, form="rows")
