"""The promises of the README, on the embedded model: really trained, and the verdicts of `excise
prune demo`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from criteria.text.reading import read_windows
from criteria.text.sources import Source
from experts.ablation import restricted
from experts.anatomy import dissect
from experts.disk.names import recipes_folder
from experts.disk.shards import open_checkpoint
from experts.loading import load_network, load_tokenizer
from experts.plan import Plan
from prune.recipe.read import read_recipe
from prune.run.pipeline import Run
from prune.session.prepare import prepare
from validate.loss import window_losses

MODEL = recipes_folder() / "demo" / "model"


def execute(out: Path, *overrides: str) -> dict[str, Any]:
    return Run(prepare(read_recipe(recipes_folder() / "demo.yaml", overrides), out)).execute().result


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One run of the recipe as it is shipped."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXCISE_CACHE", str(cache))
        return execute(tmp_path_factory.mktemp("demo") / "run"), cache


@pytest.fixture
def same_cache(demo: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    monkeypatch.setenv("EXCISE_CACHE", str(demo[1]))
    return lambda: None


@pytest.mark.slow
def test_is_really_trained() -> None:
    """On test files it never saw: far below the unigram baseline that its training wrote down beside it."""
    report = json.loads((MODEL.parent / "held_out.json").read_text())
    windows = read_windows(
        [Source(stdlib="code", split="test"), Source(stdlib="prose", split="test")],
        load_tokenizer(MODEL),
        length=256,
        sequences=16,
        seed=0,
    )
    loss = window_losses(load_network(MODEL, "float32"), windows).mean()
    assert report["held_out_loss"] < 0.65 * report["unigram_loss"]
    assert loss < 0.7 * report["unigram_loss"]


def test_is_small() -> None:
    checkpoint = open_checkpoint(MODEL)
    assert sum(tensor.elements for tensor in checkpoint.tensors.values()) <= 10_000_000
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 20_000_000


@pytest.mark.slow
def test_verdicts(demo: tuple[dict[str, Any], Path]) -> None:
    assert {plan["criterion"]: plan["verdict"] for plan in demo[0]["plans"]} == {
        "reap": "beats random",
        "random": "not distinguishable",
        "reversed:reap": "worse than random",
    }


@pytest.mark.slow
def test_checkpoint_gives_the_restricted_models_logits(demo: tuple[dict[str, Any], Path]) -> None:
    """And is smaller by exactly the removed experts' bytes."""
    result, _ = demo
    out = Path(result["checkpoint"])
    plan = Plan.read(out / "excise_plan.json")
    assert open_checkpoint(MODEL).size - open_checkpoint(out).size == result["size"]["removed"]
    removed = 48 * (3 * 192 * 128 + 192) * 2  # 48 experts and their router rows, bfloat16
    assert result["size"]["removed"] == removed
    tokens = torch.arange(300).view(2, 150)
    whole = load_network(MODEL, "bfloat16")
    with torch.no_grad(), restricted(dissect(whole), plan):
        expected = whole(input_ids=tokens, use_cache=False).logits
    reloaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=tokens, use_cache=False).logits, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("same_cache")
def test_scope_global(
    tmp_path: Path, demo: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both scopes in the table, unequal counts, bit-equal after reload (the run itself checks it); no second
    calibration.
    """
    monkeypatch.setattr("criteria.calibration.observe", None)
    changes = ("prune.scope=global", "criteria=[reap_sum]", "validate.sequences=16", "validate.length=64")
    result = execute(tmp_path / "run", *changes)
    both = {plan["scope"]: plan for plan in result["plans"]}
    assert set(both) == {"global", "layer"}
    assert both["global"]["kept"] == both["layer"]["kept"] == 48
    assert len(set(both["global"]["kept_per_layer"].values())) > 1
    assert min(both["global"]["kept_per_layer"].values()) >= 4
    assert both["global"]["delta"] < both["layer"]["delta"]
    assert np.isfinite(both["global"]["delta"])


@pytest.mark.slow
def test_the_demo_task_is_well_above_chance() -> None:
    """One of four is right by guessing; the first 80 items, a binomial test."""
    from scipy import stats

    from validate.tasks import Benchmark

    model, tokenizer = load_network(MODEL, "float32", False), load_tokenizer(MODEL, False)
    scores = Benchmark(("demo_continuation",), MODEL.parent / "tasks", 80, None).scores(model, tokenizer, 16)
    assert stats.binomtest(int(scores.sum()), 80, 0.25, alternative="greater").pvalue < 1e-4
