"""The reconstruction of routed outputs: against real re-routing, swaps, and every allocation."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import experts
from criteria.budget import from_fraction, from_total
from criteria.by_name import resolve
from criteria.experiment_context import ExperimentContext
from criteria.measure import measure
from criteria.pairs import room_of
from criteria.recon import ReconInputs, _projection
from criteria.recon_search import LayerSearch, allocated
from criteria.scores import Scores
from criteria.selection import plan_for
from experts.ablation import ablated, marked
from experts.anatomy import dissect
from experts.modes import Mode
from experts.sweep.sweep import sweep
from tests.criteria.test_causal import setting
from tests.criteria.test_pairs import routed_outputs
from tests.support import tiny
from tests.support.inputs import windows


def search_of(made: ExperimentContext, row: int, tokens: int = 0) -> LayerSearch:
    """The search of one layer of a model in memory."""
    observation = ReconInputs(made, tokens, 0)
    sweep(made.anatomy, observation)
    room = room_of(made)
    each = len(room.places) // len(made.anatomy.layers)
    places = room.places[row * each : (row + 1) * each]
    return LayerSearch(made.anatomy, row, observation.inputs(row), places, made.protected[row], row * 8)


@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "mixtral", "deepseek_v3", "gpt_oss"])
def test_its_error_is_that_of_the_model_routed_again(family: str) -> None:
    """The first layer without three experts, in mode reroute; outputs projected by the same matrix."""
    anatomy, text = dissect(tiny.build64(family)), windows(2)
    removed = [1, 4, 6] if family != "deepseek_v3" else [1, 6]
    tokens = torch.from_numpy(text.tokens)
    search = search_of(setting(anatomy, text), 0)
    before = routed_outputs(anatomy, 0, tokens)
    with ablated(anatomy, {0: marked(anatomy, *removed)}, Mode.REROUTE):
        change = routed_outputs(anatomy, 0, tokens) - before
    projected = change @ _projection(change)
    assert search.error(removed) == pytest.approx(float(projected.square().sum(1).mean()), rel=1e-5)
    assert search.error([]) == pytest.approx(0, abs=1e-12)


def test_projections_keep_lengths_in_the_mean() -> None:
    """E‖vP‖² = ‖v‖²: 2,000 random vectors, within 4 standard errors of √(2 / 8 / 64)."""
    vectors = torch.randn(2_000, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ratio = (vectors @ _projection(vectors)).square().sum() / vectors.square().sum()
    assert float(ratio) == pytest.approx(1, abs=4 * (2 / 8 / 64) ** 0.5)


def test_no_swap_of_the_found_set_is_better() -> None:
    anatomy, text = dissect(tiny.build("olmoe")), windows(3)
    search = search_of(setting(anatomy, text), 1)
    for _ in range(4):
        search.grow([1])
    error = search.improve(4)
    assert error <= search.errors[4]
    removed = set(search.order)
    for out, instead in itertools.product(removed, set(range(8)) - removed):
        assert search.error([*(removed - {out}), instead]) >= error * (1 - 1e-6)


def test_allocation_is_the_best_of_all() -> None:
    """Three curves that need not be convex, five units."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        curves = [[0.0, *np.cumsum(draw.random(4)).tolist()] for _ in range(3)]
        best = min(
            sum(curve[own] for curve, own in zip(curves, counts, strict=True))
            for counts in itertools.product(range(5), repeat=3)
            if sum(counts) == 5
        )
        counts = allocated(curves, 5)
        assert sum(counts) == 5
        assert sum(curve[own] for curve, own in zip(curves, counts, strict=True)) == pytest.approx(best)


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_plans_of_both_scopes(family: str, scope: str) -> None:
    """Selection accepts the scores, removes so many, and no worse than greedy."""
    anatomy, text = dissect(tiny.build(family)), windows(3)
    made = setting(anatomy, text)
    made = replace(made, budget=from_fraction(made.shape, 0.5, scope))  # type: ignore[arg-type]
    measurement = resolve("recon:tokens=40").measurement
    assert measurement is not None
    results = measure(measurement, made)
    scores = Scores(results["score"], made.protected, made.shape.layers, "recon", "")
    plan = plan_for(scores, made.budget, made.shape)
    assert plan.total == made.budget.total
    assert (results["objective"][:, 1] <= results["objective"][:, 0] * (1 + 1e-9)).all()


def test_units_of_four() -> None:
    anatomy, text = dissect(tiny.build("olmoe")), windows(2)
    made = setting(anatomy, text)
    made = replace(made, budget=from_total(made.shape, 16, "global", None, "test", 4))
    measurement = resolve("recon:tokens=40").measurement
    assert measurement is not None
    scores = Scores(measure(measurement, made)["score"], made.protected, made.shape.layers, "recon", "")
    counts = [len(ids) for ids in plan_for(scores, made.budget, made.shape).kept.values()]
    assert sorted(counts) == [4, 4, 8]


def test_streamed_inputs_are_those_of_a_model_in_memory(tmp_path: Path) -> None:
    folder, text = tiny.save(tiny.build("olmoe"), tmp_path / "model"), windows(4)
    found: list[Tensor] = []
    for memory, batch in (("resident", 4), ("streamed", 3)):
        anatomy = experts.load(folder, memory=memory).anatomy  # type: ignore[arg-type]
        observation = ReconInputs(setting(anatomy, text, batch=batch), 30, 0)
        sweep(anatomy, observation)
        found.append(observation.inputs(2).projected)
    assert found[0].shape == (30, 8, 8)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
