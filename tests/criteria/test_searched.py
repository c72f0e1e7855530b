"""Scores of a search at another budget: said, unless the search goes past it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import criteria
import experts
from criteria.budget import Budget
from criteria.by_name import resolve
from criteria.scores import Scores, save
from experts.errors import ExciseError
from prune.compare.searches import search_notes
from tests.support import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> experts.Model:
    """Of 3 layers with 8 experts, of which a token uses 3."""
    return experts.load(str(tiny.save(tiny.build("olmoe"), tmp_path_factory.mktemp("model") / "olmoe")))


def scores(model: experts.Model, criterion: str, **searched: Any) -> Scores:
    shape = model.shape
    values = np.random.default_rng(0).random((shape.num_layers, shape.num_experts))
    budget = criteria.budget_for(model, **searched) if searched else None
    nothing = np.zeros(values.shape, dtype=bool)
    return Scores(
        values, nothing, shape.layers, criterion, "", model.fingerprint, layout=model.layout, searched=budget
    )


def notes(caplog: pytest.LogCaptureFixture, found: Scores, **budget: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, "excise"):
        criteria.select(found, **budget)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("criterion", "searched", "used", "said"),
    [
        ("hope", {"keep": 4}, {"keep": 4}, False),
        ("hope", {"keep": 4}, {"fraction": 0.5}, False),
        ("hope", {"keep": 4}, {"keep": {0: 4, 1: 4, 2: 4}}, False),
        ("hope:mean=all", {"keep": 4}, {"keep": 5}, True),
        ("gram", {"keep": 4}, {"keep": 3}, True),
        ("fisher_pairs", {"keep": 4, "scope": "global"}, {"keep": 4}, True),
        ("recon", {"keep": 4}, {"keep": 4, "scope": "global"}, True),
        ("learned_mask", {"keep": 4}, {"fraction": 0.25}, True),
        ("reversed:max_min", {"keep": 4}, {"keep": 6}, True),
        ("causal_greedy", {"keep": 4}, {"keep": 6}, False),
        ("causal_greedy", {"keep": 4, "scope": "global"}, {"keep": 6, "scope": "global"}, False),
        ("causal_greedy", {"keep": 4}, {"keep": 3}, True),
        ("causal_greedy", {"keep": 4}, {"keep": {0: 3}}, True),
        ("causal_greedy", {"keep": 4}, {"keep": 6, "scope": "global"}, True),
        ("refit_residual", {}, {"keep": 6}, False),
        ("reap", {}, {"keep": 6}, False),
    ],
)
def test_what_is_said(
    model: experts.Model,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    criterion: str,
    searched: dict[str, Any],
    used: dict[str, Any],
    said: bool,
) -> None:
    """The same of scores in memory, and of those that a run wrote."""
    made = scores(model, criterion, **searched)
    save(tmp_path / "scores.safetensors", [made])
    read = Scores.read(tmp_path / "scores.safetensors", model, criterion=criterion)
    assert read.searched == made.searched
    expected = []
    if said:
        there, here = (criteria.budget_for(model, **keys).text for keys in (searched, used))
        note = f"{criterion} was searched for {there}; this plan ({here}) takes its order, and no search was"
        expected = [f"{note} made for it: score it again with that budget"]
    assert notes(caplog, made, **used) == notes(caplog, read, **used) == expected


def test_scores_know_their_search(model: experts.Model) -> None:
    text = criteria.windows(model, stdlib="code", split="calibration", sequences=2, length=32)
    budget = criteria.budget_for(model, keep=4)
    hope, reap = criteria.score(model, ["hope", "reap"], text, budget=budget)
    assert (hope.searched, reap.searched) == (budget, None)


def test_files_of_earlier_versions_and_damaged_ones(model: experts.Model, tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    save(path, [scores(model, "hope", keep=4)])
    arrays = load_file(path)
    common = {"model": model.fingerprint, "data": "", "layers": "0,1,2"}
    save_file(arrays, path, common)
    assert Scores.read(path, model, criterion="hope").searched is None
    for damaged in ("keep=4", "[]", '{"total": 12, "counts": null, "more": 1}', '{"total": 12}'):
        save_file(arrays, path, {**common, "searched of hope": damaged})
        with pytest.raises(ExciseError, match=r"scores.safetensors: not a score file \(no budget: "):
            Scores.read(path, model, criterion="hope")


def test_a_comparison_says_it_once(model: experts.Model) -> None:
    rows = [resolve(name) for name in ("hope", "causal_greedy", "reap", "recon:tokens=64")]
    half, quarter = (criteria.budget_for(model, fraction=fraction) for fraction in (0.5, 0.25))
    everywhere: tuple[Budget, ...] = (half, criteria.budget_for(model, fraction=0.5, scope="global"))
    for criteria_of, budgets in ((rows, [half]), (rows, everywhere), (rows[1:3], [half, quarter])):
        assert search_notes(criteria_of, budgets) == []
    [note] = search_notes(rows, [quarter, half])
    smallest = "searched for the smallest budget of a scope alone (fraction=0.5 scope=layer)"
    assert note.startswith(f"hope, recon:tokens=64: {smallest}")
