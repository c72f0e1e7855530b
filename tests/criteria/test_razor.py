"""razor against plain loops: remove an expert, route again, take the norm. No code is shared."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from criteria.by_name import resolve
from criteria.calibration import Calibration, Storage
from criteria.observe import observe
from criteria.razor import FORMS, razor
from criteria.statistics import Statistics
from experts.anatomy import Anatomy, dissect
from experts.cache import Cache
from experts.errors import ExciseError
from experts.routing import routing_without_one
from tests.support import architectures, tiny
from tests.support.inputs import windows
from tests.support.masking import masked
from tests.support.micro import micro_statistics
from tests.support.one_by_one import one_by_one
from tests.support.streaming import opened

# Softmax and sigmoid, renormalised or not, scaled or not, router groups, correction bias, shared experts, an
# expert space of its own, biases, interleaved gates.
TYPES = (
    "olmoe",
    "qwen2_moe",
    "qwen3_moe",
    "mixtral",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe",
    "gpt_oss",
    "nemotron_h",
    "granitemoeshared",
    "phimoe",
    "jamba",
)


def build(name: str) -> Any:
    return tiny.build(name) if name in tiny.FAMILIES else architectures.build(name)


def routed_outputs(model: Any, anatomy: Anatomy, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Ids of the active experts and routed output of every MoE layer in one forward."""
    calls: list[tuple[Tensor, Tensor]] = []

    def see(_: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        index = (*args, *kwargs.values())[1]
        calls.append((index, output.reshape(len(index), -1).double()))

    hooks = [layer.experts.register_forward_hook(see, with_kwargs=True) for layer in anatomy.layers]
    tiny.logits(model, tokens)
    for hook in hooks:
        hook.remove()
    return calls


def plain_loop(model: Any, anatomy: Anatomy, tokens: Tensor) -> np.ndarray:
    """Number of tokens, Σδ and Σδ² of every expert [L, E, 3], one whole forward per removal."""
    count = anatomy.shape.num_experts
    before = routed_outputs(model, anatomy, tokens)
    sums = np.zeros((len(anatomy.layers), count, 3))
    for row, layer in enumerate(anatomy.layers):
        index, routed = before[row]
        for expert in range(count):
            kept = {layer.index: [other for other in range(count) if other != expert]}
            with masked(model, kept, count):
                without = routed_outputs(model, anatomy, tokens)[row][1]
            delta = torch.linalg.vector_norm(routed - without, dim=1)[(index == expert).any(dim=1)]
            sums[row, expert] = len(delta), delta.sum(), (delta**2).sum()
    return sums


@pytest.mark.parametrize(
    ("name", "implementation", "active"),
    [
        *((name, "eager", None) for name in TYPES),
        ("olmoe", "grouped_mm", None),
        ("deepseek_v3", "grouped_mm", None),
        *((name, "eager", 4) for name in ("olmoe", "mixtral", "deepseek_v2", "glm4_moe", "gpt_oss")),
    ],
)
def test_reroute_is_what_removal_changes(name: str, implementation: str, active: int | None) -> None:
    """For every router: groups, bias and scaling are the model's own. Batches and domains do not matter."""
    model = build(name) if active is None else tiny.build(name, num_experts_per_tok=active)
    model.set_experts_implementation(implementation)
    anatomy, text = dissect(model), windows(count=2, length=10)
    found = observe(anatomy, text, batch=1, forms=["reroute"])
    expected = plain_loop(model, anatomy, torch.from_numpy(text.tokens))
    np.testing.assert_array_equal(found.replacement["reroute"][..., 0], expected[..., 0])
    np.testing.assert_allclose(found.replacement["reroute"], expected, rtol=1e-5)


@pytest.mark.parametrize("renormalised", [False, True])
@pytest.mark.parametrize("name", ["olmoe", "glm4_moe"])
def test_tokens_are_routed_twice_where_a_rule_is_proven(
    name: str, renormalised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Softmax and sigmoid, renormalised or not; where nothing is proven, k times more, to the same end."""
    anatomy = dissect(tiny.build(name, num_experts_per_tok=5, norm_topk_prob=renormalised))
    text, routed = windows(count=2), []

    def counting(anatomy: Anatomy, row: int, hidden: Tensor, expert: int) -> tuple[Tensor, Tensor]:
        routed.append(len(hidden))
        return routing_without_one(anatomy, row, hidden, expert)

    monkeypatch.setattr("experts.rerouting.routing_without_one", counting)
    by_rule = observe(anatomy, text, forms=["reroute"]).replacement["reroute"]
    tokens = len(anatomy.layers) * text.tokens.size
    assert 2 * tokens <= sum(routed) < 2.2 * tokens
    routed.clear()
    monkeypatch.setattr("experts.replacement_rule.TOLERANCE", -1.0)
    one_by_one = observe(anatomy, text, forms=["reroute"]).replacement["reroute"]
    assert sum(routed) == 7 * tokens
    np.testing.assert_allclose(by_rule, one_by_one, rtol=1e-5)


class Alone:
    """What the experts of a layer return token by token, each run by itself.

    Attributes:
        index: active experts [T, k]
        gate: their gate weights [T, k]
        every: outputs of all experts [T, E, H]
        scores: softmax of the router's logits [T, E]
    """

    index: Tensor
    gate: Tensor
    every: Tensor
    scores: Tensor

    def __init__(self, model: Any, anatomy: Anatomy, tokens: Tensor) -> None:
        layer, seen = anatomy.layers[-1], []
        hook = layer.experts.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((*args, *kwargs.values())), with_kwargs=True
        )
        tiny.logits(model, tokens)
        hook.remove()
        hidden, self.index, gate = seen[0]
        self.gate = gate.double()
        ids = torch.arange(anatomy.shape.num_experts)
        one = torch.ones(len(hidden), 1, dtype=hidden.dtype)
        alone = [layer.experts(hidden, torch.full_like(self.index[:, :1], int(e)), one) for e in ids]
        self.every = torch.stack(alone, dim=1).detach()
        self.scores = (hidden @ layer.router.weight.T).softmax(dim=-1).detach()

    def sums(self, change: Callable[[int, int, Tensor], Tensor]) -> np.ndarray:
        """Σδ of every expert [E], δ = ‖change(token, slot, y)‖."""
        found = np.zeros(self.every.shape[1])
        for token, (ids, gates) in enumerate(zip(self.index, self.gate, strict=True)):
            routed = (gates[:, None] * self.every[token, ids]).sum(dim=0)
            for slot, expert in enumerate(ids.tolist()):
                found[expert] += change(token, slot, routed).norm().item()
        return found


@pytest.mark.parametrize("name", ["olmoe", "qwen3_moe", "mixtral"])
def test_closed_forms(name: str) -> None:
    """frozen, loo and rcs by their formulas; reroute of a router that renormalises by the paper's."""
    model = tiny.build64(name)
    anatomy, text = dissect(model), windows(count=2, length=10)
    alone = Alone(model, anatomy, torch.from_numpy(text.tokens))
    found = {form: sums[-1, :, 1] for form, sums in observe(anatomy, text, forms=FORMS).replacement.items()}
    ranks = alone.scores.argsort(dim=-1, descending=True)
    k = alone.index.shape[1]

    def output(token: int, slot: int) -> Tensor:
        return alone.every[token, alone.index[token, slot]]

    def residual(token: int, slot: int, routed: Tensor) -> Tensor:
        return alone.gate[token, slot] * (output(token, slot) - routed / alone.gate[token].sum())

    def loo(token: int, slot: int, routed: Tensor) -> Tensor:
        share = alone.gate[token, slot] / alone.gate[token].sum()
        return residual(token, slot, routed) / (1 - share)

    def frozen(token: int, slot: int, _: Tensor) -> Tensor:
        enters = ranks[token, k]
        scale = alone.gate[token].sum() / alone.scores[token, alone.index[token]].sum()
        gate = alone.scores[token, enters] * scale
        return alone.gate[token, slot] * output(token, slot) - gate * alone.every[token, enters]

    def renormalised(token: int, slot: int, routed: Tensor) -> Tensor:
        enters, own = ranks[token, k], alone.gate[token, slot]
        gate = alone.scores[token, enters] / alone.scores[token, alone.index[token]].sum()
        changed = residual(token, slot, routed) - gate * (alone.every[token, enters] - routed)
        return changed / (1 - own + gate)

    np.testing.assert_allclose(found["rcs"], alone.sums(residual), rtol=1e-9)
    np.testing.assert_allclose(found["loo"], alone.sums(loo), rtol=1e-9)
    np.testing.assert_allclose(found["frozen"], alone.sums(frozen), rtol=1e-6)
    if torch.allclose(alone.gate.sum(dim=1), torch.ones(len(alone.gate), dtype=torch.float64)):
        np.testing.assert_allclose(found["reroute"], alone.sums(renormalised), rtol=1e-6)
    else:
        assert name != "mixtral", "the one that renormalises"
        assert not np.allclose(found["reroute"], found["frozen"], rtol=0.01)


@pytest.mark.parametrize("padded", [False, True])
def test_split_streaming_and_padding_do_not_matter(padded: bool) -> None:
    """Batches, halves, padded windows, layers read one by one: the same sums."""
    model = tiny.build64("deepseek_v3")
    anatomy, text = dissect(model), windows()
    if padded:
        mask = text.mask.copy()
        mask[[0, 3], -9:] = False
        text = replace(text, mask=mask)
    whole, rows = observe(anatomy, text, batch=6, forms=FORMS), np.arange(6)
    halves = [observe(anatomy, text.select(part), forms=FORMS) for part in (rows[:3], rows[3:])]
    others = [
        observe(anatomy, text, batch=1, forms=FORMS),
        observe(anatomy, text.select(rows[::-1]), batch=4, forms=FORMS),
        halves[0] + halves[1],
        observe(one_by_one(anatomy), text, batch=2, forms=FORMS),
    ]
    for other in others:
        for form in FORMS:
            np.testing.assert_allclose(other.replacement[form], whole.replacement[form], rtol=1e-6)
    np.testing.assert_array_equal(whole.replacement["reroute"][..., 0], whole.count)


def test_from_disk(tmp_path: Path) -> None:
    """A model whose layers are read one after the other."""
    model = tiny.build("olmoe")
    network, weights = opened(tiny.save(model, tmp_path / "m"))
    text = windows(count=3, length=12)
    streamed = observe(dissect(network, weights=weights), text, batch=2, forms=["reroute"])
    whole = observe(dissect(model), text, batch=2, forms=["reroute"])
    np.testing.assert_allclose(streamed.replacement["reroute"], whole.replacement["reroute"], rtol=1e-5)


def test_an_interrupted_pass_goes_on_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit: sums, domains and forms."""
    anatomy, text = dissect(tiny.build("olmoe")), windows()
    monkeypatch.setattr("criteria.observe.KEEP_EVERY", -1.0)
    kept: list[Statistics] = []
    whole = observe(anatomy, text, 2, keep=kept.append, forms=("loo", "reroute"))
    kept[1].save(tmp_path / "s.safetensors", {"key": "k"})
    done, provenance = Statistics.read(tmp_path / "s.safetensors")
    assert provenance == {"key": "k"}
    resumed = observe(anatomy, text, 2, done=done, forms=("loo", "reroute"))
    assert resumed.replacement.keys() == {"loo", "reroute"}
    for one, other in [(resumed, whole), (resumed.parts["y"], whole.parts["y"])]:
        for form in ("loo", "reroute"):
            np.testing.assert_array_equal(one.replacement[form], other.replacement[form])


def test_nobody_pays_who_did_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a form no router chooses again and nothing is added up; without one that needs it neither."""
    anatomy = dissect(tiny.build("olmoe"))
    plain = observe(anatomy, windows())
    monkeypatch.setattr("criteria.replacing.rerouted_without_each", None)
    assert plain.replacement == {}
    assert observe(anatomy, windows(), forms=["rcs", "loo"]).replacement.keys() == {"rcs", "loo"}
    with pytest.raises(ExciseError, match="razor:form=reroute: these statistics do not have its sums"):
        razor(plain)


def test_all_experts_active() -> None:
    """k = E: nobody can enter; the closed forms still have their numbers."""
    anatomy = dissect(tiny.build("olmoe", num_experts_per_tok=8))
    message = (
        r"razor:form=reroute: needs k \+ 1 experts, and every token uses all of the 8 .*use razor:form=loo"
    )
    with pytest.raises(ExciseError, match=message):
        observe(anatomy, windows(), forms=["reroute"])
    found = observe(anatomy, windows(), forms=["rcs"])
    assert (resolve("razor:form=rcs").score(found) > 0).all()


def test_groups_without_a_bias() -> None:
    changes: dict[str, Any] = {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}
    anatomy = dissect(tiny.build("deepseek_v2", **changes))
    with pytest.raises(
        ExciseError, match="2 groups without a correction bias, and cannot lose a single expert"
    ):
        observe(anatomy, windows(), forms=["frozen"])


def test_saturated_gates() -> None:
    """An expert with the whole gate weight of all its tokens: loo names it; its other tokens count."""
    found = micro_statistics()
    loo = found.replacement["loo"].copy()
    loo[0, 1] = 1, 3, 9  # one token of two had no δ
    score = resolve("razor:form=loo,over=mean").score(replace(found, replacement={"loo": loo}))
    assert score[0, 1] == 3
    loo = loo.copy()
    loo[0, 1] = 0
    with pytest.raises(
        ExciseError, match="expert 1 of MoE layer 0: it has the whole gate weight of every token"
    ):
        razor(replace(found, replacement={"loo": loo}), "loo")
    anatomy = dissect(tiny.build("olmoe", num_experts_per_tok=1))
    with pytest.raises(ExciseError, match="it has the whole gate weight"):
        razor(observe(anatomy, windows(), forms=["loo"]), "loo")
    assert np.isfinite(
        razor(observe(anatomy, windows(), forms=["frozen"]), "frozen")[found_all(anatomy)]
    ).all()


def found_all(anatomy: Anatomy) -> np.ndarray:
    """Experts that tokens reached."""
    return ~observe(anatomy, windows()).unreached


def test_unreached_experts_have_no_score() -> None:
    found = micro_statistics()
    moments, sums = found.moments.copy(), found.replacement["reroute"].copy()
    moments[0, 0], sums[0, 0] = 0, 0
    nobody = replace(found, moments=moments, replacement={"reroute": sums})
    for over in ("rms", "mean", "sum"):
        assert np.isnan(razor(nobody, over=over)).tolist() == [[True, False, False]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("razor:form=best", "form: expected one of reroute, frozen, loo, rcs, got 'best'"),
        ("razor:over=max", "over: expected one of rms, mean, sum, got 'max'"),
        ("razor:windows=2", "no setting 'windows=2'; it has form=…"),
        ("razor:form=rcs,over=sum,form=rcs", "form is given twice in 'form=rcs,over=sum,form=rcs'"),
    ],
)
def test_wrong_settings(name: str, message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        resolve(name)


def test_what_a_criterion_needs_is_known_before_the_pass() -> None:
    assert resolve("reap").forms == ()
    assert resolve("reversed:razor:form=rcs,over=sum").forms == ("rcs",)
    assert resolve("causal_greedy:start=razor").forms == ("reroute",)


def test_one_pass_for_all_forms_and_a_file_for_each_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A calibration observes once for all criteria that it is asked for; what it found is kept."""
    anatomy, passes = dissect(tiny.build("olmoe")), []

    def counting(*given: Any) -> Statistics:
        passes.append(given[5])
        return observe(*given)

    monkeypatch.setattr("criteria.calibration.observe", counting)
    model: Any = SimpleNamespace(
        anatomy=anatomy, shape=anatomy.shape, identity="m", fingerprint="m", layout=None
    )

    def calibration(**options: Any) -> Calibration:
        storage = Storage(Cache(tmp_path / "cache"), tmp_path)
        return Calibration(model, windows(), protect=False, storage=storage, **options)

    first = calibration()
    first.scores([resolve(name) for name in ("reap", "razor", "razor:form=rcs")])
    first.scores([resolve("reap")])
    assert passes == [("rcs", "reroute")]
    again = calibration(forms=("rcs", "reroute"))
    assert again.protected.shape == (3, 8)
    np.testing.assert_array_equal(
        again.scores([resolve("razor")])[0].values, first.scores([resolve("razor")])[0].values
    )
    assert passes == [("rcs", "reroute")]
    calibration().scores([resolve("reap")])
    assert passes == [("rcs", "reroute"), ()]
