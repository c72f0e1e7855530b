"""What a cut and refitted layer costs: by numpy and whole forwards; streamed, taken up again, grouped."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import finetune
from criteria.budget import Budget
from criteria.budget_request import budget_for
from criteria.scores import Scores
from criteria.text.halves import halved
from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy, dissect
from experts.arrays import Array
from experts.errors import ExciseError
from experts.inner_activations import DOWN
from experts.model import Model
from experts.plan import Plan
from experts.stored_arrays import StoredArrays
from finetune.allocation import costs
from finetune.allocation.costs import Costs, costs_of, measure_cuts
from finetune.allocation.cut import Cut
from finetune.refit.request import Request
from finetune.refit.result import swapped
from finetune.refit_model import refit_experts
from tests.finetune.refit.test_refit import opened
from tests.support import tiny
from tests.support.by_hand import features_by_hand, stream_after
from tests.support.sweeps import windows

TEXT = windows(8, 32)
CUTS = [Cut(0, (0, 2, 4, 5)), Cut(0, (0, 1, 2, 3, 5, 7)), Cut(1, (1, 3, 6, 7)), Cut(2, (0, 4, 5, 6, 7))]


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return opened(tiny.save(tiny.build("olmoe"), tmp_path_factory.mktemp("allocation") / "model"))


@pytest.fixture(scope="module")
def expected(olmoe: Model) -> Costs:
    return measure_cuts(olmoe.anatomy, CUTS, Request(TEXT))


def log_probabilities(anatomy: Anatomy, text: Windows) -> Array:
    """By numpy in float64 [N, W, V]."""
    logits = tiny.logits(anatomy.model, text.tensor("cpu")).double().numpy()
    most = logits.max(-1, keepdims=True)
    found: Array = logits - most - np.log(np.exp(logits - most).sum(-1, keepdims=True))
    return found


def divergence_and_rise(clean: Array, cut: Array, text: Windows) -> tuple[float, float]:
    """Means over every token that has a next one, window by window and token by token."""
    apart, rise = [], []
    for window, tokens in enumerate(text.tokens):
        for place in range(len(tokens) - 1):
            if text.mask[window, place] and text.mask[window, place + 1]:
                own, other = clean[window, place], cut[window, place]
                apart.append(float((np.exp(own) * (own - other)).sum()))
                rise.append(own[tokens[place + 1]] - other[tokens[place + 1]])
    return float(np.mean(apart)), float(np.mean(rise))


def test_by_dense_least_squares_and_whole_forwards() -> None:
    """Every layer that is cut: refitted by numpy on one half, forwarded whole on the other, in float64."""
    network = tiny.build("olmoe").double()
    network.set_experts_implementation("batched_mm")
    anatomy, ridge = dissect(network), 0.1
    fitted, judged = TEXT.select(np.arange(0, 8, 2)), TEXT.select(np.arange(1, 8, 2))  # one domain, dealt
    clean = log_probabilities(anatomy, judged)
    found = costs_of(anatomy, CUTS, Request(TEXT, ridge, fewest=0, batch=3))
    for cut, costs_of_cut in zip(CUTS, found, strict=True):
        plan = Plan(8, {row: cut.kept if row == cut.row else tuple(range(8)) for row in range(3)})
        tokens = fitted.tensor("cpu")
        whole = stream_after(anatomy, cut.row, tokens)
        with restricted(anatomy, plan):
            lacking = whole - stream_after(anatomy, cut.row, tokens)
            features = features_by_hand(anatomy, cut.row, cut.kept, tokens)
        gram = features.T @ features
        shifted = gram + ridge * np.diag(gram).mean() * np.eye(len(gram))
        change = np.linalg.solve(shifted, features.T @ lacking)
        down: Any = anatomy.layers[cut.row].experts.get_parameter(DOWN)
        before = down.detach().clone()
        turned = change.reshape(len(cut.kept), -1, whole.shape[1]).transpose(0, 2, 1)
        down.data[list(cut.kept)] += torch.from_numpy(turned)
        with restricted(anatomy, plan):
            by_hand = divergence_and_rise(clean, log_probabilities(anatomy, judged), judged)
        down.data[...] = before
        np.testing.assert_allclose(costs_of_cut, by_hand, rtol=1e-6, atol=1e-10)
        assert by_hand[0] > 1e-4


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss", "qwen2_moe"])
def test_other_types(family: str, tmp_path: Path) -> None:
    """Dense layers below, router groups, shared experts, a chosen λ; the refit is that of a whole plan."""
    model = opened(tiny.save(tiny.build(family), tmp_path / "model"))
    shape = model.shape
    rows = range(shape.num_layers)
    cuts = [Cut(row, (0, 1, 4, 5)) for row in rows]
    text = windows(9, 32, padded=True)
    fitted, judged = halved(text)
    clean = log_probabilities(model.anatomy, judged)
    found = measure_cuts(model.anatomy, cuts, Request(text, batch=2))
    for row, cut in enumerate(cuts):
        plan = cut.plan(shape)
        refit = refit_experts(model, plan, fitted, batch=2)
        layer, change = model.anatomy.layers[row], refit.layers[row]
        assert np.isinf([below.ridge for below in refit.layers[:row]]).all(), "nothing is lacking below"
        with restricted(model.anatomy, plan), swapped(layer, cut.kept, change.weights):
            by_hand = divergence_and_rise(clean, log_probabilities(model.anatomy, judged), judged)
        np.testing.assert_allclose((found.divergence[row], found.rise[row]), by_hand, rtol=1e-3, atol=1e-6)


def test_the_model_is_as_before(olmoe: Model) -> None:
    before = {name: tensor.clone() for name, tensor in olmoe.network.state_dict().items()}
    measure_cuts(olmoe.anatomy, CUTS[:2], Request(TEXT, 0.1))
    after = olmoe.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("share", [0.25, 0.0], ids=["side by side", "one by one"])
def test_streamed_is_resident(
    olmoe: Model, expected: Costs, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "SHARE", share)
    for mode in ("streamed", "resident"):
        found = measure_cuts(opened(olmoe.folder, mode).anatomy, CUTS, Request(TEXT))
        assert found.divergence.tolist() == expected.divergence.tolist()
        assert found.rise.tolist() == expected.rise.tolist()


def test_an_interrupted_measurement_goes_on(
    olmoe: Model, expected: Costs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that are finished are not measured again."""
    partial = StoredArrays(tmp_path / "partial.safetensors", "key")
    measured: list[Cut] = []

    def until_layer_1(anatomy: Anatomy, cuts: list[Cut], *rest: Any) -> list[tuple[float, float]]:
        if cuts[0].row == 1 and len(measured) == 2:
            raise KeyboardInterrupt
        measured.extend(cuts)
        return costs_of(anatomy, cuts, *rest)

    monkeypatch.setattr(costs, "costs_of", until_layer_1)
    with pytest.raises(KeyboardInterrupt):
        measure_cuts(olmoe.anatomy, CUTS, Request(TEXT), partial)
    measured.append(CUTS[0])  # so that nothing is interrupted again
    found = measure_cuts(olmoe.anatomy, CUTS, Request(TEXT), partial)
    assert measured == [*CUTS[:2], CUTS[0], *CUTS[2:]]
    assert found.divergence.tolist() == expected.divergence.tolist()
    assert found.rise.tolist() == expected.rise.tolist()


def scores_of(model: Model) -> Scores:
    values = np.random.default_rng(0).random((3, 8))
    layers, none = model.shape.layers, np.zeros((3, 8), bool)
    return Scores(values, none, layers, "drawn", "", model.fingerprint, layout=model.layout, text=TEXT)


def test_the_counts_are_those_of_the_lowest_sum(olmoe: Model) -> None:
    """Of all vectors of the total, by the costs that the allocation itself shows."""
    budget = budget_for(olmoe, keep=5, scope="global")
    found = finetune.allocate(olmoe, scores_of(olmoe), TEXT, budget=budget, ridge=0.1)
    assert found.measured == (3, 4, 5, 6, 7)
    table = np.pad(found.divergence, ((0, 0), (0, 1)))
    sums = {
        (a + 3, b + 3, c + 3): table[0, a] + table[1, b] + table[2, c]
        for a in range(6)
        for b in range(6)
        for c in range(6)
        if a + b + c + 9 == 15
    }
    best = min(sums, key=lambda counts: sums[counts])
    assert tuple(found.counts.values()) == best
    assert found.expected == pytest.approx(sums[best])
    assert found.expected_by_scores == pytest.approx(sums[tuple(found.by_scores.values())])
    assert found.plan.seen is TEXT.tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": windows(2, 32)}, "text has 2 windows; counts per layer need at least 3"),
        ({"ridge": -1.0}, "ridge is -1.0"),
        ({"budget": "layer"}, "counts per layer are chosen in scope global alone"),
        ({"scores": "other"}, "scores: they are of another model"),
    ],
)
def test_refusals(olmoe: Model, change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"scores": scores_of(olmoe), "text": TEXT, **change}
    budget: Budget = budget_for(olmoe, keep=5, scope=given.pop("budget", "global"))
    if given["scores"] == "other":
        given["scores"] = Scores(np.ones((3, 8)), np.zeros((3, 8), bool), (0, 1, 2), "o", "", "elsewhere")
    text, scores = given.pop("text"), given.pop("scores")
    with pytest.raises(ExciseError, match=message):
        finetune.allocate(olmoe, scores, text, budget=budget, **given)
