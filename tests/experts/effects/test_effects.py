"""Exact effects against plain replay written out here, without the product's own intervention: invariants 3,
4 and 5 of the design.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from experts.ablation import ablated, restricted
from experts.anatomy import Anatomy, dissect
from experts.decoder import Part
from experts.effects.instrument import Instrument
from experts.effects.means import mean_outputs as real_means
from experts.effects.measurement import measure
from experts.effects.removal import Removal
from experts.errors import ExciseError
from experts.modes import Mode, Scope
from experts.plan import Plan
from experts.seam import intercepted
from experts.sweep.branch import Branch
from experts.sweep.record import CleanForward
from experts.sweep.runner import Runner
from tests.support import tiny
from tests.support.one_by_one import one_by_one
from tests.support.removals import (
    at_positions,
    branches_fail,
    clean_forward,
    everywhere,
    packing_off_by,
    replay_position,
)

families = pytest.mark.parametrize("family", tiny.FAMILIES)
modes = pytest.mark.parametrize("mode", list(Mode))
LENGTH = 20


def made(family: str, **changes: object) -> Anatomy:
    return dissect(tiny.build(family, **changes))


def mean_outputs(anatomy: Anatomy) -> Tensor:
    """Any vectors will do to compare two implementations."""
    return torch.randn(
        len(anatomy.layers), anatomy.shape.num_experts, 32, generator=torch.Generator().manual_seed(3)
    )


@contextmanager
def by_hand(anatomy: Anatomy, layer: int, gone: Tensor, mode: Mode, means: Tensor) -> Iterator[None]:
    """The intervention once more, independent of experts/ablation.py: a wrapper around the experts, or around
    the router's matrix product.

    gone: experts removed at each token of the whole forward [T, E].
    """
    experts, gate = anatomy.layers[layer].experts, anatomy.layers[layer].router
    original = experts.forward

    def edited(hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        total = torch.zeros_like(hidden)
        for slot in range(index.shape[1]):
            one = original(hidden, index[:, slot : slot + 1], torch.ones(len(hidden), 1))
            for token, e in enumerate(index[:, slot].tolist()):
                hit = [bool(gone[token, other]) for other in index[token]]
                w = float(weight[token, slot])
                if hit[slot]:
                    total[token] += w * means[layer, e] if mode is Mode.MEAN else 0
                else:
                    left = float(sum(v for v, h in zip(weight[token], hit, strict=True) if not h))
                    total[token] += (
                        w
                        * one[token]
                        * (float(weight[token].sum()) / left if mode is Mode.RENORMALIZE and any(hit) else 1)
                    )
        return total

    linear = torch.nn.functional.linear

    def barred(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """Logits of a removed expert become −∞: for routers without a correction bias that is a
        re-routing.
        """
        logits = linear(x, w, b)
        mine = w.shape == gate.weight.shape and torch.equal(w, gate.weight.to(w.dtype))
        return logits.masked_fill(gone.view(logits.shape), -torch.inf) if mine else logits

    if mode is Mode.REROUTE:
        torch.nn.functional.linear = barred
    else:
        experts.forward = lambda hidden_states, top_k_index, top_k_weights: edited(
            hidden_states, top_k_index, top_k_weights
        )
    try:
        yield
    finally:
        torch.nn.functional.linear = linear
        vars(experts).pop("forward", None)


def losses(anatomy: Anatomy, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of the next token [B, W − 1] and log p [B, W, V], float64."""
    with torch.no_grad():
        logp = torch.log_softmax(anatomy.model(input_ids=tokens, use_cache=False).logits.double(), dim=-1)
    return -logp[:, :-1].gather(2, tokens[:, 1:, None])[..., 0], logp


def marks(experts: int, *removed: int) -> Tensor:
    found = torch.zeros(experts, dtype=torch.bool)
    found[list(removed)] = True
    return found


# With a correction bias a logit of −∞ does not keep an expert from being chosen: those families are compared
# with a restriction below.
PLAIN_ROUTERS = [family for family in tiny.FAMILIES if family not in ("deepseek_v3", "glm4_moe")]
CASES = [
    (family, mode)
    for family in tiny.FAMILIES
    for mode in Mode
    if mode is not Mode.REROUTE or family in PLAIN_ROUTERS
]


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_position_effects_equal_replay(family: str, mode: Mode) -> None:
    """Every active expert of every layer, at a third of the positions: ΔCE and KL of the packed rows, within
    1e-5.
    """
    anatomy, means = made(family), None
    means = mean_outputs(anatomy)
    tokens = tiny.ids(1, LENGTH)
    instrument = Instrument(anatomy, mode, means, at_once=7)
    clean = clean_forward(instrument, tokens, Scope.POSITION)
    clean_losses, clean_logp = losses(anatomy, tokens)
    for layer in range(len(anatomy.layers)):
        cells = [(t, int(e)) for t in range(0, LENGTH - 1, 3) for e in clean.index[layer][0, t]]
        delta, divergence = at_positions(
            instrument,
            clean,
            torch.tensor([t for t, _ in cells]),
            {layer: torch.stack([marks(8, e) for _, e in cells])},
        )
        for row, (t, e) in enumerate(cells):
            gone = torch.zeros(LENGTH, 8, dtype=torch.bool)
            gone[t, e] = True
            with by_hand(anatomy, layer, gone, mode, means):
                found, logp = losses(anatomy, tokens)
            assert float(delta[row]) == pytest.approx(float(found[0, t] - clean_losses[0, t]), abs=1e-5)
            kl = (clean_logp[0, t].exp() * (clean_logp[0, t] - logp[0, t])).sum()
            assert float(divergence[row]) == pytest.approx(float(kl), abs=1e-5)
            assert float((found[0, :t] - clean_losses[0, :t]).abs().max() if t else 0) <= 1e-5
    assert not instrument.notes


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_sequence_effects_equal_replay(family: str, mode: Mode) -> None:
    anatomy = made(family)
    means, tokens = mean_outputs(anatomy), tiny.ids(2, LENGTH)
    instrument = Instrument(anatomy, mode, means)
    clean = clean_forward(instrument, tokens, Scope.SEQUENCE)
    clean_losses, clean_logp = losses(anatomy, tokens)
    for layer in range(len(anatomy.layers)):
        for expert in (0, 5):
            delta, divergence = everywhere(instrument, clean, {layer: marks(8, expert)})
            with by_hand(anatomy, layer, marks(8, expert).expand(2 * LENGTH, -1), mode, means):
                found, logp = losses(anatomy, tokens)
            torch.testing.assert_close(delta, found - clean_losses, atol=1e-5, rtol=0)
            kl = (clean_logp.exp() * (clean_logp - logp)).sum(-1)[:, :-1]
            torch.testing.assert_close(divergence, kl, atol=1e-5, rtol=0)


@families
def test_reroute_everywhere_is_pruning(family: str) -> None:
    """Mode reroute at every token and a restriction (which is a cut, bit by bit) give the same losses; also
    several layers at once.
    """
    anatomy, tokens = made(family), tiny.ids(2, LENGTH)
    kept = (0, 1, 3, 4, 6, 7)  # even over the two router groups of deepseek_v3
    plan = Plan(8, dict.fromkeys(anatomy.shape.layers, kept))
    with restricted(anatomy, plan):
        expected = tiny.logits(anatomy.model, tokens)
    with ablated(anatomy, dict.fromkeys(range(len(anatomy.layers)), marks(8, 2, 5)), Mode.REROUTE):
        found = tiny.logits(anatomy.model, tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_single_expert_of_a_router_with_correction_bias(family: str) -> None:
    """One expert is uneven over router groups; it is kept from being chosen, and the others are weighted as
    the model does.
    """
    anatomy, tokens = made(family), tiny.ids(2, LENGTH)
    clean = clean_forward(Instrument(anatomy, Mode.REROUTE), tokens, Scope.SEQUENCE)
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(layer: int, run, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        if layer == 0:
            seen.append((index, weight))
        return run(hidden, index, weight)

    victim = int(clean.index[0].flatten().mode().values)
    # Under `ablated` the inner handler is what really reaches the experts.
    with intercepted(anatomy, watch), ablated(anatomy, {0: marks(8, victim)}, Mode.REROUTE):
        tiny.logits(anatomy.model, tokens)
    index, weight = seen[0]
    before, before_weight = clean.index[0].flatten(0, 1), clean.weight[0].flatten(0, 1)
    assert not (index == victim).any()
    untouched = ~(before == victim).any(dim=1)
    assert untouched.any()
    assert (~untouched).any()
    assert torch.equal(index[untouched].sort().values, before[untouched].sort().values)
    torch.testing.assert_close(weight[untouched].sum(1), before_weight[untouched].sum(1), atol=1e-5, rtol=0)


@families
@modes
def test_fast_paths_hold(family: str, mode: Mode) -> None:
    """The self-check passes on every family, so nothing falls back."""
    anatomy = made(family)
    instrument = Instrument(anatomy, mode, mean_outputs(anatomy))
    assert max(instrument.check(tiny.ids(2, LENGTH), scope) for scope in Scope) <= 1e-5
    assert (instrument.packs, instrument.enters, instrument.notes) == (True, True, [])


def alone(_: int, run, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Each token by itself: grouped kernels round by group size, so an edited token would move the last bit
    of others.
    """
    return torch.cat(
        [run(hidden[i : i + 1], index[i : i + 1], weight[i : i + 1]) for i in range(len(hidden))]
    )


@families
def test_earlier_positions_and_inactive_experts_are_exactly_unchanged(family: str) -> None:
    anatomy, tokens, t = made(family), tiny.ids(1, LENGTH), 11
    instrument = Instrument(anatomy)
    with intercepted(anatomy, alone):
        clean = clean_forward(instrument, tokens, Scope.SEQUENCE)
        for layer in range(len(anatomy.layers)):
            for expert in range(8):
                gone = torch.zeros(LENGTH, 8, dtype=torch.bool)
                gone[t, expert] = True
                delta, _ = everywhere(instrument, clean, {layer: gone})
                assert (delta[0, :t] == 0).all()
                assert bool((delta[0, t:] == 0).all()) == (expert not in clean.index[layer][0, t])


@families
def test_rows_do_not_see_each_other_and_leave_the_prefix_alone(family: str) -> None:
    """A row's effect is the same in any company, and nothing it does reaches the clean positions."""
    anatomy, tokens = made(family), tiny.ids(1, LENGTH)
    instrument = Instrument(anatomy)
    clean = clean_forward(instrument, tokens, Scope.POSITION)
    assert clean.prefix is not None
    before = {number: (keys.clone(), values.clone()) for number, (keys, values) in clean.prefix.kept.items()}
    where = torch.arange(LENGTH - 1)
    removed = torch.stack([marks(8, int(clean.index[0][0, t, 0])) for t in where])
    together, _ = at_positions(instrument, clean, where, {0: removed})
    single = torch.cat(
        [at_positions(instrument, clean, where[t : t + 1], {0: removed[t : t + 1]})[0] for t in where]
    )
    torch.testing.assert_close(together, single, atol=2e-6, rtol=0)
    assert all(
        torch.equal(clean.prefix.kept[n][0], keys) and torch.equal(clean.prefix.kept[n][1], v)
        for n, (keys, v) in before.items()
    )


@families
def test_nothing_survives(family: str) -> None:
    """Invariant 3, also after an exception in the middle of an ablation."""
    anatomy, tokens = made(family), tiny.ids(1, LENGTH)
    before = tiny.logits(anatomy.model, tokens)
    for mode in Mode:
        instrument = Instrument(anatomy, mode, mean_outputs(anatomy))
        for scope in Scope:
            instrument.check(tokens, scope)
        with pytest.raises(IndexError), ablated(anatomy, {0: marks(8, 1)}, mode, mean_outputs(anatomy)):
            tiny.logits(anatomy.model, tokens + 10**6)
    assert torch.equal(tiny.logits(anatomy.model, tokens), before)
    assert not [name for name, module in anatomy.model.named_modules() if "forward" in vars(module)]


# Planted experts.


def planted(essential: bool) -> tuple[Anatomy, int, int]:
    """An OLMoE whose layer 1, expert 2 does nothing, or does almost everything."""
    anatomy = made("olmoe")
    with torch.no_grad():
        experts = anatomy.layers[1].experts
        experts.down_proj[2] = experts.down_proj[2] * 30 if essential else 0
    return anatomy, 1, 2


@pytest.mark.parametrize("mode", [Mode.ZERO, Mode.MEAN])
@pytest.mark.parametrize("scope", list(Scope))
def test_inert_expert_costs_nothing(mode: Mode, scope: Scope) -> None:
    anatomy, layer, expert = planted(essential=False)
    tokens = tiny.ids(1, 40)
    instrument = Instrument(anatomy, mode, torch.zeros(3, 8, 32))
    clean = clean_forward(instrument, tokens, scope)
    where = torch.nonzero((clean.index[layer][0, :-1] == expert).any(-1))[:, 0]
    assert len(where) > 3
    if scope is Scope.POSITION:
        delta, divergence = at_positions(
            instrument, clean, where, {layer: marks(8, expert).expand(len(where), -1)}
        )
        assert float(delta.abs().max()) <= 2e-6  # rounding: the rows are another shape of matrix product
        assert float(divergence.max()) <= 1e-6
    else:
        delta, divergence = everywhere(instrument, clean, {layer: marks(8, expert)})
        assert (delta == 0).all()
        assert float(divergence.max()) <= 1e-6


@modes
def test_expert_that_is_never_chosen_costs_nothing_in_any_mode(mode: Mode) -> None:
    """With a correction bias of −100 the router of GLM-4-MoE never chooses expert 3, and normalises the
    weights of those it does choose.
    """
    anatomy, tokens = made("glm4_moe", norm_topk_prob=True), tiny.ids(2, LENGTH)
    with torch.no_grad():
        anatomy.layers[1].router.e_score_correction_bias[3] = -100
    instrument = Instrument(anatomy, mode, torch.ones(2, 8, 32))
    clean = clean_forward(instrument, tokens, Scope.CORPUS)
    assert not (clean.index[1] == 3).any()
    assert (everywhere(instrument, clean, {1: marks(8, 3)})[0].abs() <= 1e-6).all()
    chosen = int(clean.index[1].flatten().mode().values)
    assert (everywhere(instrument, clean, {1: marks(8, chosen)})[0].abs() > 1e-3).any()


# Sets of experts.


def test_pairs_and_groups() -> None:
    """Two experts of a layer and one of a higher layer, together, in rows and everywhere."""
    anatomy, tokens = made("mixtral"), tiny.ids(1, LENGTH)
    instrument = Instrument(anatomy)
    clean = clean_forward(instrument, tokens, Scope.POSITION)
    where = torch.arange(4, LENGTH - 1, 4)
    both = {
        0: torch.stack([marks(8, *clean.index[0][0, t].tolist()) for t in where]),
        2: marks(8, 3).expand(len(where), -1),
    }
    delta, _ = at_positions(instrument, clean, where, both)
    for row, t in enumerate(where):
        loss, _ = replay_position(
            instrument, clean, int(t), {layer: rows[row] for layer, rows in both.items()}
        )
        assert float(delta[row]) == pytest.approx(float(loss - clean.losses[0, t]), abs=1e-5)
    first, second = torch.bincount(clean.index[1].flatten(), minlength=8).topk(2).indices.tolist()
    single = [everywhere(instrument, clean, {1: marks(8, e)})[0] for e in (first, second)]
    together = everywhere(instrument, clean, {1: marks(8, first, second)})[0]
    with (
        ablated(anatomy, {1: marks(8, first)}, Mode.ZERO),
        ablated(anatomy, {1: marks(8, second)}, Mode.ZERO),
    ):
        expected = losses(anatomy, tokens)[0] - clean.losses
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(together, single[0] + single[1], atol=1e-3)


def test_too_few_experts_left_to_route() -> None:
    anatomy = made("olmoe")
    instrument = Instrument(anatomy, Mode.REROUTE)
    clean = clean_forward(instrument, tiny.ids(1, LENGTH), Scope.SEQUENCE)
    with pytest.raises(ExciseError, match="2 of 8 experts would be left, but every token uses top_k = 3"):
        everywhere(instrument, clean, {0: marks(8, 0, 1, 2, 3, 4, 5)})


def test_mean_outputs_by_hooks() -> None:
    """Each expert's own output, one call per token and expert, averaged over the tokens that chose it."""
    anatomy, tokens = made("qwen2_moe"), tiny.ids(3, LENGTH)
    sums, counts = torch.zeros(3, 8, 32, dtype=torch.float64), torch.zeros(3, 8)

    def watch(layer: int, run, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        for row, chosen in zip(hidden, index, strict=True):
            for e in chosen.tolist():
                sums[layer, e] += run(row[None], torch.tensor([[e]]), torch.ones(1, 1))[0].double()
                counts[layer, e] += 1
        return run(hidden, index, weight)

    with intercepted(anatomy, watch), torch.no_grad():
        anatomy.model(input_ids=tokens, use_cache=False)
    found = real_means(anatomy, tokens, batch=2)
    reached = counts > 0
    torch.testing.assert_close(
        found[reached].double(), (sums / counts[..., None])[reached], atol=1e-6, rtol=0
    )
    assert (found[~reached] == 0).all()


# Falling back.


def test_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast path that is wrong by a little is found out, and the slow one gives the right numbers."""
    anatomy, tokens = made("olmoe"), tiny.ids(1, LENGTH)
    packing_off_by(monkeypatch, 1e-3)
    instrument = Instrument(anatomy)
    instrument.check(tokens, Scope.POSITION)
    assert not instrument.packs
    assert "packing differs from plain replay by 0.001 nats" in instrument.notes[0]
    clean = clean_forward(instrument, tokens, Scope.POSITION)
    assert clean.prefix is None
    where, removed = (
        torch.tensor([3, 9]),
        {1: torch.stack([marks(8, int(clean.index[1][0, t, 0])) for t in (3, 9)])},
    )
    delta, _ = at_positions(instrument, clean, where, removed)
    monkeypatch.undo()
    fast = Instrument(anatomy)
    torch.testing.assert_close(
        delta,
        at_positions(fast, clean_forward(fast, tokens, Scope.POSITION), where, removed)[0],
        atol=1e-5,
        rtol=0,
    )


def test_linear_attention_falls_back_to_replay() -> None:
    """Qwen3-Next mixes tokens by a recurrence in most layers: no mask hides rows from it.

    Prefix caching holds nevertheless.
    """
    sizes = {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 20,
        "head_dim": 8,
    }
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    kinds = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
    tiny_model = AutoConfig.for_model("qwen3_next", **{**tiny.COMMON, **sizes, **linear, **kinds})
    torch.manual_seed(0)
    anatomy = dissect(AutoModelForCausalLM.from_config(tiny_model, dtype=torch.float32).eval())
    instrument, tokens = Instrument(anatomy), tiny.ids(1, LENGTH)
    for scope in Scope:
        instrument.check(tokens, scope)
    assert (instrument.packs, instrument.enters) == (False, True)
    assert instrument.notes[0].startswith("packing does not run on this model")
    clean, (clean_losses, _) = clean_forward(instrument, tokens, Scope.POSITION), losses(anatomy, tokens)
    expert = int(clean.index[1][0, 7, 0])
    gone = torch.zeros(LENGTH, 8, dtype=torch.bool)
    gone[7, expert] = True
    delta, _ = at_positions(instrument, clean, torch.tensor([7]), {1: marks(8, expert)[None]})
    with by_hand(anatomy, 1, gone, Mode.ZERO, mean_outputs(anatomy)):
        found, _ = losses(anatomy, tokens)
    assert float(delta[0]) == pytest.approx(float(found[0, 7] - clean_losses[0, 7]), abs=1e-5)
    assert abs(float(delta[0])) > 1e-4


def test_a_mode_that_cannot_be_replayed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr("experts.ablation.routing_without", broken)
    with pytest.raises(
        ExciseError, match=r"removals in mode reroute cannot be measured on this model \(sizes do not match\)"
    ):
        Instrument(made("olmoe"), Mode.REROUTE).check(tiny.ids(1, LENGTH), Scope.CORPUS)


def test_falls_back_where_it_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    branches_fail(monkeypatch, RuntimeError("no attention mask here"), packed=False)
    instrument = Instrument(made("olmoe"))
    for scope in (Scope.POSITION, Scope.CORPUS):
        instrument.check(tiny.ids(1, LENGTH), scope)
    assert (instrument.packs, instrument.enters) == (False, False)
    assert "packing does not run on this model (no attention mask here)" in instrument.notes[0]
    assert "prefix caching does not run" in instrument.notes[1]


# Precision and memory.


def test_a_half_precision_model_is_checked_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that bfloat16's rounding would hide is found, and the model is bit-equal to before."""
    anatomy, tokens = made("olmoe"), tiny.ids(1, LENGTH)
    anatomy.model.to(torch.bfloat16)
    before = tiny.logits(anatomy.model, tokens)
    packing_off_by(monkeypatch, 0.01)
    instrument = Instrument(anatomy)
    instrument.check(tokens, Scope.POSITION)
    assert not instrument.packs
    assert torch.equal(tiny.logits(anatomy.model, tokens), before)
    monkeypatch.setattr("experts.effects.precision.free_bytes", lambda _: 1000)
    scarce = Instrument(anatomy)
    scarce.check(tokens, Scope.POSITION)
    assert scarce.packs, "without memory for float32 an error of 0.01 is within the rounding"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Results are float64 sums of what the half-precision model computes: near the float32 effects, at its
    own rounding.
    """
    tokens = tiny.ids(1, LENGTH)
    full, half = made("olmoe"), made("olmoe")
    half.model.to(dtype)
    deltas = []
    for anatomy in (full, half):
        instrument = Instrument(anatomy)
        instrument.check(tokens, Scope.POSITION)
        assert instrument.packs
        clean = clean_forward(instrument, tokens, Scope.SEQUENCE)
        deltas.append(everywhere(instrument, clean, {1: marks(8, 4)})[0])
    assert deltas[1].dtype == torch.float64
    assert float((deltas[0] - deltas[1]).abs().mean()) < 0.05
    assert float(torch.corrcoef(torch.stack(deltas).flatten(1))[0, 1]) > 0.9


@pytest.mark.parametrize(
    ("layered", "expected_sizes"),
    [(False, [19, 9, 4, 5, 5, 5]), (True, [19, 19, 19, 9, 4, 5, 5, 5])],
    ids=["one forward", "at the top of three layers"],
)
def test_smaller_chunks_when_memory_runs_out(
    layered: bool, expected_sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interventions that do not fit are measured in halves, to the same effects; no more are tried again."""
    anatomy, tokens = made("olmoe"), tiny.ids(1, LENGTH)
    run, sizes = Runner.branch, []

    def hungry(self: Runner, part: Part, branch: Branch, *rest: Any) -> Any:
        assert branch.position is not None
        sizes.append(len(branch.position))
        if len(branch.position) > 5 and part.span.stop == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return run(self, part, branch, *rest)

    expected = every_position(anatomy, tokens)
    monkeypatch.setattr(Runner, "branch", hungry)
    found = every_position(one_by_one(anatomy) if layered else anatomy, tokens)
    assert sizes == expected_sizes
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def every_position(anatomy: Anatomy, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """ΔCE and KL of removing expert 1 of the lowest layer at every position of a window."""
    where = torch.arange(LENGTH - 1)
    found = []

    def removals(batch: int, row: int, clean: CleanForward) -> Iterator[Removal]:
        if row == 0:
            yield Removal(0, {0: marks(8, 1).expand(len(where), -1)}, lambda *both: found.append(both), where)

    measure(Instrument(anatomy), [tokens], Scope.POSITION, removals)
    return found[0]


def test_not_even_one_row_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: tried 9 bytes"
    branches_fail(monkeypatch, RuntimeError(message), packed=True)
    with pytest.raises(
        ExciseError, match=r"out of memory: not even one intervention fits \(.*DefaultCPUAllocator"
    ):
        every_position(made("olmoe"), tiny.ids(1, LENGTH))
