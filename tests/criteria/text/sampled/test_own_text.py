"""A model writes: from its own probabilities, the same for every batch, and again after an interruption."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GenerationConfig

import criteria
import experts
from criteria.text.sampled import own_text
from criteria.text.sampled.draw import continued, drawn
from criteria.text.sampled.own_text import OwnText, SampleStore
from criteria.text.sampled.settings import Sampled
from experts.arrays import Ids
from experts.cache import Cache
from experts.errors import ExciseError
from experts.memory_settings import MemorySettings
from tests.support import tiny

LENGTH = 12


@pytest.fixture(scope="module")
def model(saved: dict[str, Path]) -> experts.Model:
    return experts.load(str(saved["olmoe"]), dtype="float32")


def own(model: experts.Model, **changes: Any) -> OwnText:
    return replace(OwnText(model, Sampled(), LENGTH, group=8), **changes)


def test_inversion_of_the_cumulated_softmax() -> None:
    """Probabilities 1/8, 1/2, 3/8: the numbers of the first eighth take token 0, the next half token 1."""
    logits = torch.tensor([[1.0, 4.0, 3.0]]).log().repeat(5, 1)
    numbers = torch.tensor([0.0, 0.12, 0.13, 0.62, 0.63], dtype=torch.float64)
    assert drawn(logits, numbers, 1.0).tolist() == [0, 0, 1, 1, 2]
    # Temperature 1/2 squares the odds: 1/26, 16/26, 9/26.
    assert drawn(logits, numbers, 0.5).tolist() == [0, 1, 1, 1, 1]


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).repeat(2, 1)
    assert drawn(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), 1.0).tolist() == [1, 1]


def test_successors_follow_the_softmax(model: experts.Model) -> None:
    """χ² of 4,000 successors of one token against the probabilities of a plain forward."""
    count, temperature = 4000, 0.7
    numbers = np.random.default_rng(0).random((count, 1))
    first = np.full((count, 1), 65)
    found = continued(model.network, first, numbers, temperature, tell=lambda _: None)[:, 1]
    with torch.no_grad():
        logits = model.network(input_ids=torch.tensor([[65]])).logits[0, -1].double().numpy()
    expected = count * np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    common = expected >= 5
    counts = np.bincount(found, minlength=len(logits))
    table = [*counts[common], counts[~common].sum()], [*expected[common], expected[~common].sum()]
    assert common.sum() > 20
    assert stats.chisquare(*table).pvalue > 0.01
    uniform = [*np.full(common.sum(), expected[common].mean()), expected[~common].sum()]
    assert stats.chisquare(table[0], uniform).pvalue < 1e-6, "the test can tell distributions apart"


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "deepseek_v3", "qwen3_moe"])
def test_the_cache_gives_what_a_plain_forward_gives(family: str, saved: dict[str, Path]) -> None:
    """Every token is the one that plain forwards without a cache and the window's own numbers choose.

    Windows are longer than the sliding window of gpt-oss (8).
    """
    model = experts.load(str(saved[family]), dtype="float32")
    text = own(model, group=2)
    opening = text.check()
    for number, window in enumerate(text.windows(2)):
        rng = np.random.default_rng([0, 0, number])
        ids = opening.ids(rng).tolist()
        for uniform in rng.random(LENGTH - len(ids)):
            with torch.no_grad():
                logits = model.network(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            probabilities = np.exp(logits.double().numpy() - logits.double().numpy().max())
            ids.append(int(np.searchsorted(probabilities.cumsum(), uniform * probabilities.sum(), "right")))
        assert window.tolist() == ids


def test_windows_do_not_depend_on_the_batch(model: experts.Model) -> None:
    one, eight = own(model, group=1).windows(10), own(model).windows(10)
    assert np.array_equal(one, eight)
    assert np.array_equal(own(model).windows(3), eight[:3])
    assert len(np.unique(eight, axis=0)) == 10


def test_seeds_and_settings_matter(model: experts.Model) -> None:
    first = own(model).windows(2)
    for other in (
        own(model, block=1),
        own(model, settings=Sampled(seed=1)),
        own(model, settings=Sampled(temperature=0.5)),
    ):
        assert not np.array_equal(first, other.windows(2))


def test_nothing_that_the_checkpoint_says_of_generation_counts(model: experts.Model) -> None:
    """Top-k of 1 would make every window greedy, and a stop at any token would make it short."""
    before = own(model).windows(2)
    generation = model.network.generation_config
    strange = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, top_k=1, repetition_penalty=9.0, eos_token_id=list(range(tiny.VOCABULARY))
    )
    model.network.generation_config = strange
    try:
        assert np.array_equal(own(model).windows(2), before)
        assert model.network.generation_config is strange
    finally:
        model.network.generation_config = generation


def test_an_interrupted_run_goes_on(
    model: experts.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its second group it keeps the first; the third run draws nothing."""
    whole = own(model).windows(20)
    store = SampleStore(Cache(tmp_path / "run"), tmp_path / "run" / "partial.safetensors")
    calls: list[int] = []

    def counting(*arguments: Any) -> Ids:
        calls.append(len(arguments[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return continued(*arguments)

    monkeypatch.setattr(own_text, "continued", counting)
    with pytest.raises(KeyboardInterrupt):
        own(model, store=store).windows(20)
    assert np.array_equal(own(model, store=store).windows(20), whole)
    assert calls == [8, 8, 8, 8]
    assert np.array_equal(own(model, store=store).windows(20), whole)
    assert len(calls) == 4
    assert not (tmp_path / "run" / "partial.safetensors").exists()
    assert np.array_equal(own(model, store=store).windows(30)[:20], whole)
    assert len(calls) == 5, "24 windows were kept"


def test_a_kept_result_of_other_settings_is_not_used(model: experts.Model, tmp_path: Path) -> None:
    store = SampleStore(Cache(tmp_path / "run"), tmp_path / "run" / "partial.safetensors")
    first = own(model, store=store).windows(2)
    other = own(model, store=store, settings=Sampled(seed=3))
    assert np.array_equal(other.windows(2), own(model, settings=Sampled(seed=3)).windows(2))
    assert not np.array_equal(other.windows(2), first)


def test_memory_that_runs_out_halves_the_group(model: experts.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = own(model).windows(8)

    def small(*arguments: Any) -> Ids:
        if len(arguments[1]) > 2:
            raise RuntimeError("CUDA out of memory")
        return continued(*arguments)

    monkeypatch.setattr(own_text, "continued", small)
    assert np.array_equal(own(model).windows(8), whole)


def test_a_streamed_model_is_refused(saved: dict[str, Path]) -> None:
    model = experts.load(str(saved["olmoe"]), memory=MemorySettings("streamed"))
    with pytest.raises(ExciseError, match=r"it is streamed .*`excise sample` on a machine where it fits"):
        criteria.sampled(model, windows=2, length=LENGTH)


def test_a_loop_that_fails_is_one_line(model: experts.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("no cache of this kind\nand more")

    monkeypatch.setattr(model.network, "forward", broken)
    with pytest.raises(ExciseError, match="generation loop cannot be run .*no cache of this kind") as found:
        own(model).windows(1)
    assert "\n" not in str(found.value)


def test_the_public_function(model: experts.Model) -> None:
    text = criteria.sampled(model, windows=3, length=LENGTH, temperature=0.9, seed=2)
    assert text.tokens.shape == (3, LENGTH)
    assert text.domains == ("sampled",)
    assert len(set(text.documents)) == 3
    how = {"start": "random", "temperature": 0.9, "seed": 2, "model": model.fingerprint}
    assert text.summary()["sampled"] == [{"windows": 3, **how}]
    for wrong, message in (
        ({"temperature": 0.0}, "temperature: Input should be greater than 0"),
        ({"start": "middle"}, "start 'middle': expected one of random, bos, chat"),
        ({"windows": 0}, "windows is 0"),
    ):
        with pytest.raises(ExciseError, match=message):
            criteria.sampled(model, **wrong)
