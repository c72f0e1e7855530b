"""Layer by layer, all at once, and plain whole forwards: the same bits for every supported type."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from criteria.removal_costs import RemovalCosts
from criteria.text.windows import Windows
from experts.ablation import ablated, marked, restricted
from experts.anatomy import Anatomy, dissect
from experts.arrays import Array
from experts.effects.instrument import Instrument
from experts.effects.measurement import measure
from experts.effects.outcome import log_probabilities, outcomes
from experts.effects.removal import Removal, Take
from experts.errors import ExciseError
from experts.loading import load_network
from experts.modes import Mode, Scope
from experts.sweep.record import CleanForward
from tests.support import architectures, tiny, wrappers
from tests.support.architecture_table import REFUSED
from tests.support.quantised import to_fp8, to_mxfp4
from tests.support.streaming import opened
from tests.support.sweeps import LENGTH, losses, random_plans, statistics, windows
from validate.loss import window_losses

Save = Callable[[Path], object]


def saved(build: Callable[[str], PreTrainedModel], name: str) -> Save:
    return lambda folder: tiny.save(build(name).eval(), folder)


def fp8(folder: Path) -> None:
    """Blocks of 128 rows and columns, the last of which are cut off."""
    tiny.save(tiny.build("deepseek_v3", hidden_size=160, moe_intermediate_size=136, kv_lora_rank=184), folder)
    to_fp8(folder)


def mxfp4(folder: Path) -> None:
    tiny.save(tiny.build("gpt_oss", hidden_size=64, intermediate_size=64), folder)
    to_mxfp4(folder)


def tied(folder: Path) -> None:
    """The head is the embeddings."""
    tiny.save(tiny.build("qwen3_moe", tie_word_embeddings=True), folder)


SLOW = pytest.mark.slow
CASES = [
    *[pytest.param(saved(tiny.build, name), id=name) for name in tiny.FAMILIES],
    *[pytest.param(save, id=save.__name__) for save in (fp8, mxfp4, tied)],
    *[
        pytest.param(saved(architectures.build, name), id=f"type {name}", marks=SLOW)
        for name in architectures.types()
    ],
    *[pytest.param(saved(wrappers.build, name), id=f"wrapper {name}", marks=SLOW) for name in wrappers.OWN],
]


@pytest.fixture(scope="module", params=CASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("equal") / "model"
    request.param(place)
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> Anatomy:
    """All weights in memory."""
    network = load_network(folder)
    try:
        return dissect(network)
    except ExciseError as error:
        assert REFUSED[network.config.model_type] in str(error)
        pytest.skip(f"refused: {error}")


@pytest.fixture(scope="module")
def streamed(model: Anatomy, folder: Path) -> Anatomy:
    """The same checkpoint, of which a decoder layer at a time is in memory."""
    network, weights = opened(folder)
    anatomy = dissect(network, weights=weights)
    assert anatomy.weights.streamed
    assert all(weight.is_meta for layer in anatomy.layers for weight in layer.weights.values())
    return anatomy


@pytest.mark.parametrize("padded", [False, True])
def test_losses_of_plans(model: Anatomy, streamed: Anatomy, padded: bool) -> None:
    text = windows(padded=padded)
    plain = [whole_losses(model, text)]
    for plan in random_plans(model):
        with restricted(model, plan):
            plain.append(window_losses(model.model, text, 2))
    assert np.array_equal(losses(model, padded), np.stack(plain))
    assert np.array_equal(losses(streamed, padded), np.stack(plain))


@pytest.mark.parametrize("padded", [False, True])
def test_statistics(model: Anatomy, streamed: Anatomy, padded: bool) -> None:
    whole_losses(model, windows(padded=padded))
    layered, at_once = statistics(streamed, padded), statistics(model, padded)
    assert np.array_equal(layered, at_once, equal_nan=True)
    assert np.isfinite(layered).mean() > 0.9


def test_leave_one_out(model: Anatomy, streamed: Anatomy) -> None:
    """ΔCE and KL of the first and the last expert of every layer, at every position."""
    instrument = Instrument(model, Mode.ZERO)
    instrument.check(tokens(), Scope.CORPUS)
    plain = torch.stack([_plain_effects(model, {row: mark}) for row, mark in removed(model)])
    assert torch.equal(_effects(instrument), plain)
    instrument.anatomy = streamed
    assert torch.equal(_effects(instrument), plain)


def test_a_greedy_round(model: Anatomy, streamed: Anatomy) -> None:
    """KL that a second removal adds to that of an expert of the lowest layer."""
    gone = np.zeros((len(model.layers), model.shape.num_experts), bool)
    gone[0, 1] = True
    candidates = np.zeros_like(gone)
    candidates[:, [0, -1]] = True
    costs = RemovalCosts.__new__(RemovalCosts)
    costs.batch, costs.tokens, costs.divergence = 2, tokens(), True
    costs.instrument = Instrument(model, Mode.REROUTE)
    try:
        costs.instrument.check(tokens(), Scope.CORPUS)
    except ExciseError as error:
        assert "another mode" in str(error)
        pytest.skip(f"refused: {error}")
    found = []
    for anatomy in (model, streamed):
        costs.anatomy = costs.instrument.anatomy = anatomy
        found.append(costs.of(candidates, gone))
    assert np.array_equal(*found, equal_nan=True)
    assert np.array_equal(found[0], _plain_round(model, candidates), equal_nan=True)


def whole_losses(anatomy: Anatomy, text: Windows) -> Array:
    """By whole forwards. Where the library itself cannot (one wrapper of it), the test ends."""
    try:
        return window_losses(anatomy.model, text, 2)
    except AttributeError as error:
        assert "has no attribute 'vision_start_token_id'" in str(error)
        pytest.skip(f"{type(anatomy.model).__name__}: {error}")


def tokens() -> Tensor:
    return tiny.ids(2, LENGTH)


def removed(anatomy: Anatomy) -> list[tuple[int, Tensor]]:
    experts = (0, anatomy.shape.num_experts - 1)
    return [(row, marked(anatomy, expert)) for row in range(len(anatomy.layers)) for expert in experts]


def _effects(instrument: Instrument) -> Tensor:
    """ΔCE and KL [R, 2, B, W − 1]."""
    cases = removed(instrument.anatomy)
    effects = torch.full((len(cases), 2, 2, LENGTH - 1), torch.nan, dtype=torch.float64)

    def keep(number: int) -> Take:
        return lambda delta, divergence: effects[number].copy_(torch.stack([delta, divergence]))

    def removals(batch: int, row: int, clean: CleanForward) -> list[Removal]:
        return [
            Removal(row, {row: mark}, keep(number)) for number, (at, mark) in enumerate(cases) if at == row
        ]

    measure(instrument, [tokens()], Scope.CORPUS, removals)
    return effects


@torch.no_grad()
def _logits(anatomy: Anatomy, marks: dict[int, Tensor], mode: Mode) -> Tensor:
    with ablated(anatomy, marks, mode):
        return anatomy.model(input_ids=tokens(), use_cache=False).logits


def _plain_effects(anatomy: Anatomy, marks: dict[int, Tensor]) -> Tensor:
    """ΔCE and KL of a removal [2, B, W − 1], by whole forwards."""
    clean, changed = _logits(anatomy, {}, Mode.ZERO), _logits(anatomy, marks, Mode.ZERO)
    effects = [_effects_of_window(*window) for window in zip(tokens(), clean, changed, strict=True)]
    return torch.stack(effects, dim=1)


def _effects_of_window(ids: Tensor, clean: Tensor, changed: Tensor) -> Tensor:
    known, positions = log_probabilities(clean), torch.arange(LENGTH - 1)
    before = torch.nn.functional.cross_entropy(clean[:-1].float(), ids[1:], reduction="none").double()
    after, divergence = outcomes(changed[:-1], ids[1:], known, positions)
    return torch.stack([after - before, divergence])


def _plain_round(anatomy: Anatomy, candidates: np.ndarray) -> Array:
    """The same by whole forwards."""
    first = marked(anatomy, 1)
    unpruned = log_probabilities(_logits(anatomy, {}, Mode.REROUTE))
    before = log_probabilities(_logits(anatomy, {0: first}, Mode.REROUTE))
    pairs = zip(unpruned, before, strict=True)
    cost_before = sum(float((full.exp() * (full - pruned))[:-1].sum()) for full, pruned in pairs)
    found = np.full(candidates.shape, np.nan)
    for row, expert in np.argwhere(candidates).tolist():
        both = {0: first, row: marked(anatomy, expert) | (first if row == 0 else False)}
        after = _divergence(unpruned, _logits(anatomy, both, Mode.REROUTE))
        found[row, expert] = (after - cost_before) / (2 * (LENGTH - 1))
    return found


def _divergence(unpruned: Tensor, logits: Tensor) -> float:
    """KL from log p of the unpruned model, summed over the positions."""
    positions = torch.arange(LENGTH - 1)
    windows = zip(tokens(), unpruned, logits, strict=True)
    found = [outcomes(changed[:-1], ids[1:], known, positions)[1] for ids, known, changed in windows]
    return float(torch.stack(found).sum())
