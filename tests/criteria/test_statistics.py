"""Statistics against numbers worked out by hand, an independent replay, and the ways a text can be split."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from criteria import centrality, formulas, protection
from criteria.by_name import resolve
from criteria.observe import observe
from criteria.registry import CRITERIA
from criteria.statistics import Statistics
from criteria.text.windows import Windows
from experts.anatomy import dissect
from experts.errors import ExciseError
from tests.support import tiny
from tests.support.inputs import windows
from tests.support.micro import MicroModel, micro_statistics

SUMS = ("tokens", "moments", "peak", "turning", "together", "by_domain")


# 1 − cos(h, h + y): token 0: y = (1, 0), no turn. Token 1: y = (4, −4), h + y = (4, −2): 1 + 4 / (2√20)
# = 1 + 1/√5.
# Token 2: y = (−5, −16), h + y = (−2, −12): 1 + 54 / (5√148) = 1 + 27 / (5√37).
TURN_1, TURN_2 = 1 + 1 / np.sqrt(5), 1 + 27 / (5 * np.sqrt(37))

# Routed again without one expert, y becomes: token 0: (−1, 0) without 0, (2, 0) without 2. Token 1: (0, −4)
# without 1, (4, 0) without 2. Token 2: (−3, −4) without 1, (34, 36) without 2. So δ = 2, 1; 4, 4; √148, 65.
# The residual f − y/G: token 0, G = 2: (±1.5, 0). Token 1, G = 4: (1, 1), (−1, −1). Token 2, G = 11:
# (49, 49)/11 of expert 1, −(28, 28)/11 of expert 2.
RCS_2 = 196 * np.sqrt(2) / 11

BY_HAND = {
    "razor": [2, np.sqrt((16 + 148) / 2), np.sqrt((1 + 16 + 65**2) / 3)],
    "razor:over=mean": [2, (4 + np.sqrt(148)) / 2, (1 + 4 + 65) / 3],
    "razor:form=frozen,over=sum": [2, 4 + np.sqrt(148), 1 + 4 + 65],
    "razor:form=rcs,over=sum": [1.5, 2 * np.sqrt(2) + RCS_2, 1.5 + 2 * np.sqrt(2) + RCS_2],
    "razor:form=loo,over=sum": [3, 32 * np.sqrt(2), 3 + 53 * np.sqrt(2)],
    "utilization": [1 / 3, 2 / 3, 1],
    "routing_mass": [1 / 3, 6 / 3, 10 / 3],
    "routing_weight": [1, 3, 10 / 3],
    "activation_norm": [2, 7 / 2, 8 / 3],
    "activation_norm_sum": [2, 7, 8],
    "activation_square": [4, 29 / 2, 10],
    "activation_std": [0, 1.5, np.sqrt(10 - 64 / 9)],
    "reap": [2, 12, 40 / 3],
    "reap_sum": [2, 24, 40],
    "easy_ep": [0, 4 * TURN_1 + 20 * TURN_2, 4 * TURN_1 + 35 * TURN_2],
    "max_activation": [2, 4, 4],
    "router_norm": [1, 1, np.sqrt(2)],
    "weight_norm": [np.sqrt(2 + 8), 2, 2],
    "aimer": [-(6 / 8) / np.sqrt(10 / 8), -(4 / 8) / np.sqrt(4 / 8), -(4 / 8) / np.sqrt(4 / 8)],
    # P(j | i): 0→2 = 1, 1→2 = 1, 2→0 = 1/3, 2→1 = 2/3. x_0 = x_2/3λ, x_1 = 2x_2/3λ, x_2 = (x_0 + x_1)/λ,
    # so λ = 1.
    "hub": [1 / 3, 2 / 3, 1],
    # Joint counts: 0–2: 1, 1–2: 2. λx_0 = x_2, λx_1 = 2x_2, λx_2 = x_0 + 2x_1, so λ² = 5.
    "hub_joint": [1 / np.sqrt(5), 2 / np.sqrt(5), 1],
    # Rates (x: 1 token, y: 2 tokens): e0 (1, 0), e1 (0, 1), e2 (1, 1), so e2 is even over both domains.
    "specialization": [1, 1, 0],
    "family:2,1,sum": [2, 4 * 2 + 16 * 5, 1 + 4 * 2 + 49 * 5],
    "family:2,2,mean": [4, (4 * 4 + 16 * 25) / 2, (1 + 4 * 4 + 49 * 25) / 3],
    "reversed:reap": [-2, -12, -40 / 3],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_formula_by_hand(name: str) -> None:
    np.testing.assert_allclose(
        resolve(name).score(micro_statistics()),
        [BY_HAND[name]],
        rtol=1e-12,
        atol=1e-7 if name == "activation_std" else 1e-12,
    )


def test_every_observational_criterion_is_worked_out_by_hand() -> None:
    observed = {
        name for name, row in CRITERIA.items() if row.measurement is None
    }  # the measured ones have test_causal.py
    assert observed - {"random"} <= set(BY_HAND)


def test_counts_by_hand() -> None:
    found = micro_statistics()
    np.testing.assert_array_equal(found.tokens, [1, 2])
    np.testing.assert_array_equal(found.together[0], [[1, 0, 1], [0, 2, 2], [1, 2, 3]])
    np.testing.assert_array_equal(found.by_domain[0], [[1, 0], [0, 2], [1, 2]])


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_against_replay(family: str, implementation: str) -> None:
    """An independent pass: hooks record what enters the experts, then every expert is run alone, token by
    token.
    """
    model = tiny.build(family) if implementation == "grouped_mm" else tiny.build64(family)
    model.set_experts_implementation(implementation)
    precision = 1e-4 if implementation == "grouped_mm" else 1e-10
    anatomy, text = dissect(model), windows(count=2)
    calls = []
    hooks = [
        layer.experts.register_forward_hook(
            lambda module, args, kwargs, output: calls.append((module, args, kwargs)), with_kwargs=True
        )
        for layer in anatomy.layers
    ]
    tiny.logits(model, torch.from_numpy(text.tokens))
    for hook in hooks:
        hook.remove()
    found = observe(anatomy, text)
    for layer, (module, args, kwargs) in enumerate(calls):
        hidden, index, gate = (*args, *kwargs.values())
        expected, peak = np.zeros((8, 3, 3)), np.zeros(8)
        for token in range(len(hidden)):
            for e, g in zip(index[token].tolist(), gate[token].tolist(), strict=True):
                alone = (
                    module(
                        hidden[token : token + 1], torch.tensor([[e]]), torch.ones(1, 1, dtype=hidden.dtype)
                    )
                    .detach()
                    .numpy()
                )
                norm = np.linalg.norm(alone)
                expected[e] += np.outer([1, g, g * g], [1, norm, norm**2])
                peak[e] = max(peak[e], np.abs(alone).max())
        np.testing.assert_allclose(found.moments[layer], expected, rtol=precision)
        np.testing.assert_allclose(found.peak[layer], peak, rtol=precision)
        assert found.moments[layer, :, 0, 0].sum() == len(hidden) * anatomy.shape.top_k


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss"])
def test_split_order_and_padding_do_not_matter(family: str) -> None:
    """Invariant 2, in float64: one batch, single windows, reversed order, merged halves, and padded windows
    agree.
    """
    anatomy, text = dissect(tiny.build64(family)), windows()
    whole = observe(anatomy, text, batch=6)
    rows = np.arange(6)
    padded = Windows(
        np.pad(text.tokens, ((0, 0), (0, 5)), constant_values=7),
        np.pad(text.mask, ((0, 0), (0, 5))),
        text.document,
        text.domain,
        text.documents,
        text.domains,
    )
    others = {
        "single windows": observe(anatomy, text, batch=1),
        "reversed": observe(anatomy, text.select(rows[::-1]), batch=4),
        "halves": observe(anatomy, text.select(rows[:3])) + observe(anatomy, text.select(rows[3:])),
        "padded": observe(anatomy, padded, batch=2),
    }
    for name, other in others.items():
        for field in SUMS:
            np.testing.assert_allclose(
                getattr(other, field), getattr(whole, field), rtol=1e-9, atol=1e-9, err_msg=f"{name}: {field}"
            )


def test_interrupted_pass_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics kept in the middle, handed back as `done`, give the same result and repeat no window."""
    anatomy, text = dissect(tiny.build64("olmoe")), windows()
    monkeypatch.setattr("criteria.observe.KEEP_EVERY", 0.0)
    kept: list[Statistics] = []
    whole = observe(anatomy, text, batch=2, keep=kept.append)
    assert [part.tokens.sum() for part in kept] == [48, 96, 144]
    resumed = observe(anatomy, text, batch=2, done=kept[0])
    for field in SUMS:
        np.testing.assert_allclose(getattr(resumed, field), getattr(whole, field), rtol=1e-12)


def test_a_pass_ends_alike_wherever_it_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded or not, bit by bit with the same batch; with another one to rounding.

    Statistics of other windows are refused.
    """
    anatomy, full = dissect(tiny.build("olmoe")), windows()
    monkeypatch.setattr("criteria.observe.KEEP_EVERY", -1.0)
    padding = full.mask.copy()
    padding[[0, 2, 3], [-7, -1, -12]] = False
    padding = np.logical_and.accumulate(padding, axis=1)
    for text in (full, replace(full, mask=padding)):
        kept: list[Statistics] = []
        whole = observe(anatomy, text, batch=2, keep=kept.append)
        assert len(kept) == 3
        for part in kept:
            for batch in (1, 2, 4):
                resumed = observe(anatomy, text, batch=batch, done=part)
                for field in SUMS:
                    np.testing.assert_allclose(
                        getattr(resumed, field), getattr(whole, field), rtol=1e-5, err_msg=field
                    )
                    assert batch != 2 or np.array_equal(getattr(resumed, field), getattr(whole, field)), field
    with pytest.raises(ExciseError, match="of other windows"):
        observe(anatomy, replace(full, mask=padding), done=observe(anatomy, full))
    with pytest.raises(ExciseError, match="of another model"):
        observe(dissect(tiny.build("olmoe", seed=1)), full, done=observe(anatomy, full))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_observation_is_the_plain_forward(family: str) -> None:
    """While being watched the model computes what it always computes, bit for bit; afterwards nothing is left
    in it.
    """
    model = tiny.build(family)
    anatomy, before = dissect(model), tiny.logits(model)
    states = {name: dict(vars(module)) for name, module in model.named_modules()}
    hidden = []
    hook = model.base_model.register_forward_hook(
        lambda _module, _args, output: hidden.append(output.last_hidden_state)
    )
    observe(anatomy, windows())
    hook.remove()
    plain = model.base_model(input_ids=torch.from_numpy(windows().tokens), use_cache=False).last_hidden_state
    assert torch.equal(hidden[0], plain)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == states
    assert torch.equal(tiny.logits(model), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_unreached_experts_have_no_score() -> None:
    """No token reaches expert 0: means and sums are nan there, never 0 or a division by zero; frequency is a
    true 0.
    """
    tokens = np.array([[1, 2]])
    found = observe(
        dissect(MicroModel()),
        Windows(tokens, np.ones_like(tokens, bool), np.array([0]), np.array([0]), ("a",), ("x",)),
    )
    assert found.unreached.tolist() == [[True, False, False]]
    for name in ("routing_weight", "reap", "reap_sum", "activation_std", "easy_ep", "max_activation", "hub"):
        score = CRITERIA[name].score(found)
        assert np.isnan(score[0, 0]), name
        assert np.isfinite(score[0, 1:]).all(), name
    assert formulas.utilization(found)[0, 0] == 0


def test_hub_is_frequency() -> None:
    """With k active experts per token the centrality of conditional co-activation is n_e itself; that of
    joint activation is not.
    """
    found = observe(dissect(tiny.build("olmoe")), windows())
    share = formulas.utilization(found)
    np.testing.assert_allclose(centrality.hub(found), share / share.max(axis=1, keepdims=True), rtol=1e-8)
    assert not np.allclose(centrality.hub_joint(found), centrality.hub(found), atol=0.05)


def test_specialization_needs_two_domains() -> None:
    with pytest.raises(ExciseError, match="at least two `domain` labels, found one"):
        formulas.specialization(observe(dissect(MicroModel()), windows_of_micro()))


def windows_of_micro() -> Windows:
    return Windows(np.array([[0, 1, 2]]), np.ones((1, 3), bool), np.array([0]), np.array([0]), ("a",), ("x",))


def test_easy_ep_without_a_visible_residual_is_an_error() -> None:
    """A block that no norm feeds: every other criterion still has its numbers."""
    model = MicroModel()
    layer = model.layers[0]
    layer.forward = lambda hidden: (
        hidden + layer.mlp(hidden * 1)
    )  # nothing but the block itself touches the stream
    found = observe(dissect(model), windows_of_micro())
    with pytest.raises(ExciseError, match="easy_ep: .* no norm feeds"):
        formulas.easy_ep(found)
    np.testing.assert_allclose(formulas.reap(found), [[2, 12, 40 / 3]])


def test_super_experts() -> None:
    """The one outlier of an early layer is protected; in the last quarter of the layers it is not."""
    found = micro_statistics()
    shape = (8, 100)
    peak = np.ones(shape)
    peak[1, 7], peak[7, 3] = 500.0, 500.0
    blank = {
        name: np.zeros(shape) for name in ("turning", "router_norm", "weight_l1", "weight_l2", "weight_count")
    }
    statistics = Statistics(
        found.tokens,
        np.ones((*shape, 3, 3)),
        peak,
        together=np.ones((8, 100, 100)),
        by_domain=np.ones((8, 100, 2)),
        **blank,
    )
    assert np.argwhere(protection.super_experts(statistics)).tolist() == [[1, 7]]


@pytest.mark.parametrize("experts", [2, 24, 96, 199, 200, 201, 202, 256, 1024, 6144])
def test_how_many_super_experts_there_are_by_construction(experts: int) -> None:
    """Activations that are all different: ⌈(n − 1) / 200⌉ of them are above the percentile, though none is an
    outlier.
    """
    peak = 100 + np.random.default_rng(0).permutation(experts).astype(float)
    assert int((peak > np.percentile(peak, 99.5)).sum()) == math.ceil((experts - 1) / 200)
    assert protection.protects("auto", experts) == (experts >= 200), "below that the one is more than 0.5 %"
    assert protection.protects(True, experts)
    assert not protection.protects(False, experts)


def test_merging_refuses_other_models() -> None:
    one = micro_statistics()
    with pytest.raises(ExciseError, match="cannot merge statistics of shapes"):
        one + observe(dissect(MicroModel()), windows_of_micro())
    model = MicroModel()
    with torch.no_grad():
        model.layers[0].mlp.experts.down_proj *= 2
    with pytest.raises(ExciseError, match="two models"):
        observe(dissect(model), windows_of_micro()) + observe(dissect(MicroModel()), windows_of_micro())


def test_file_round_trip_and_damage(tmp_path: Path) -> None:
    found = micro_statistics()
    found.save(tmp_path / "s.safetensors", {"key": "k"})
    back, provenance = Statistics.read(tmp_path / "s.safetensors")
    assert provenance == {"key": "k"}
    np.testing.assert_array_equal(back.moments, found.moments)
    (tmp_path / "s.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ExciseError, match=r"s\.safetensors: not a statistics file"):
        Statistics.read(tmp_path / "s.safetensors")
