"""Sums over pairs of experts, by hand and by plain loops, and the criteria that are made of them."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import criteria
import experts
from criteria.calibration import Calibration
from criteria.observe import observe
from criteria.pairs import in_units
from criteria.statistics import Statistics
from criteria.text.windows import Windows
from experts.ablation import ablated, marked
from experts.anatomy import Anatomy, dissect
from experts.errors import ExciseError
from experts.modes import Mode
from experts.seam import Forward, intercepted
from tests.criteria.test_causal import scores_of, setting
from tests.support import tiny
from tests.support.inputs import windows
from tests.support.micro import MicroModel


def test_sums_by_hand() -> None:
    """The three tokens of tests/support/micro.py: g f of both experts, padding left out.

    token 0: experts 0, 2: (2, 0), (−1, 0). token 1: 1, 2: (4, 0), (0, −4).
    token 2: 1, 2: (16, 12), (−21, −28).
    """
    text = Windows(
        np.array([[0, 2], [1, 2]]),
        np.array([[True, False], [True, True]]),
        np.array([0, 1]),
        np.array([0, 1]),
        ("a", "b"),
        ("x", "y"),
    )
    found = observe(dissect(MicroModel()), text, pairs=True)
    np.testing.assert_allclose(found.pair_outputs[0], [[4, 0, -2], [0, 416, -672], [-2, -672, 1242]])
    np.testing.assert_allclose(found.pair_norms[0], [[4, 0, 2], [0, 416, 716], [2, 716, 1242]])
    assert observe(dissect(MicroModel()), text).pair_norms.size == 0, "others pay nothing"


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss"])
def test_neither_batches_nor_padding_nor_interruptions_matter(family: str) -> None:
    anatomy, text = dissect(tiny.build(family)), windows(6)
    whole = observe(anatomy, text, batch=6, pairs=True)
    extra = np.zeros((6, 5), dtype=np.int64)
    padded = replace(
        text,
        tokens=np.concatenate([text.tokens, extra], axis=1),
        mask=np.concatenate([text.mask, extra.astype(bool)], axis=1),
    )
    rows = np.arange(6)
    first = observe(anatomy, text.select(rows[:2]), pairs=True)
    others = {
        "single windows": observe(anatomy, text, batch=1, pairs=True),
        "padded": observe(anatomy, padded, batch=2, pairs=True),
        "merged": first + observe(anatomy, text.select(rows[2:]), pairs=True),
        "resumed": observe(anatomy, text, batch=3, done=first, pairs=True),
    }
    for way, found in others.items():
        for name in ("pair_norms", "pair_outputs"):
            expected = getattr(whole, name)
            np.testing.assert_allclose(
                getattr(found, name), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=way
            )
    with pytest.raises(ExciseError, match="other sums"):
        observe(anatomy, text, done=first)
    with pytest.raises(ExciseError, match="without them"):
        _ = first + observe(anatomy, text)


def test_they_are_kept_on_disk(tmp_path: Path) -> None:
    found = observe(dissect(tiny.build("olmoe")), windows(2), pairs=True)
    path = tmp_path / "sums.safetensors"
    found.save(path, {})
    again, _ = Statistics.read(path)
    np.testing.assert_array_equal(again.pair_outputs, found.pair_outputs)
    np.testing.assert_array_equal(again.pair_norms, found.pair_norms)


def routed_outputs(anatomy: Anatomy, row: int, tokens: Tensor) -> Tensor:
    """What the experts of one layer add [T, H]."""
    seen: list[Tensor] = []

    def watch(at: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        routed = run(hidden, index, weight)
        if at == row:
            seen.append(routed.detach())
        return routed

    with intercepted(anatomy, watch), torch.no_grad():
        anatomy.model(input_ids=tokens, use_cache=False)
    return seen[0]


@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "mixtral", "deepseek_v2", "deepseek_v3", "gpt_oss"])
def test_gram_is_the_squared_change_of_the_routed_output(family: str) -> None:
    """pᵀGp against the model without P in mode zero, in its first layer of experts and in its last."""
    anatomy, text = dissect(tiny.build64(family)), windows(2)
    tokens = torch.from_numpy(text.tokens)
    found = observe(anatomy, text, pairs=True)
    for row, removed in ((0, (1, 4, 6)), (len(anatomy.layers) - 1, (0, 2, 3, 7))):
        before = routed_outputs(anatomy, row, tokens)
        with ablated(anatomy, {row: marked(anatomy, *removed)}, Mode.ZERO):
            after = routed_outputs(anatomy, row, tokens)
        change = float((after - before).double().square().sum(dim=1).mean())
        block = found.pair_outputs[row][np.ix_(removed, removed)]
        assert block.sum() / text.tokens.size == pytest.approx(change, rel=1e-5)
        assert change > 0


def test_hope_is_a_mean_over_tokens_that_both_serve() -> None:
    """The objective, worked out from the sums; over all tokens, with the same sums, it is another one."""
    anatomy, text = dissect(tiny.build("olmoe")), windows(4)
    made = setting(anatomy, text, statistics=observe(anatomy, text, pairs=True))
    found = made.statistics
    for name, tokens in (
        ("hope", np.maximum(found.together, 1)),
        ("hope:mean=all", np.full_like(found.together, text.tokens.size)),
    ):
        pairs = found.pair_norms / tokens
        score = scores_of(name, made)
        for row in range(3):
            removed = np.argsort(score[row])[:4]
            best = min(pairs[row][np.ix_(ids, ids)].sum() for ids in itertools.combinations(range(8), 4))
            assert pairs[row][np.ix_(removed, removed)].sum() == pytest.approx(best)


def test_relative_units_divide_by_the_whole_of_a_layer() -> None:
    pairs = np.array([[[1.0, 0], [0, 3]], [[10, 0], [0, 30]]])
    np.testing.assert_allclose(in_units(pairs, "relative"), [[[0.25, 0], [0, 0.75]]] * 2)
    assert in_units(pairs, "stream") is pairs


def test_a_calibration_keeps_them_when_they_are_asked_for() -> None:
    """A first pass without them is made again; the scores make a plan of their budget, in both scopes."""
    model = experts.load("demo")
    text = criteria.windows(model, stdlib="code", split="calibration", sequences=4, length=64)
    calibration = Calibration(model, text)
    assert calibration.observed.pair_norms.size == 0
    with pytest.raises(ExciseError, match="hope: a search needs the budget"):
        criteria.score(model, "hope", calibration)
    for scope in ("layer", "global"):
        budget = criteria.budget_for(model, fraction=0.5, scope=scope)  # type: ignore[arg-type]
        for name in ("hope", "gram:units=relative", "reversed:gram"):
            plan = criteria.select(criteria.score(model, name, calibration, budget=budget), budget=budget)
            assert plan.total == 48
    assert calibration.observed.pair_norms.shape == (6, 16, 16)


def test_streamed_sums_are_those_of_a_model_in_memory(tmp_path: Path) -> None:
    folder, text = tiny.save(tiny.build("olmoe"), tmp_path / "model"), windows(4)
    whole = observe(experts.load(folder).anatomy, text, pairs=True)
    streamed = observe(experts.load(folder, memory="streamed").anatomy, text, batch=3, pairs=True)
    np.testing.assert_allclose(streamed.pair_outputs, whole.pair_outputs, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(streamed.pair_norms, whole.pair_norms, rtol=1e-4, atol=1e-6)
