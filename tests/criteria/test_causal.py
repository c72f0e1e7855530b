"""Causal and gradient criteria against brute force: whole forwards, plans, finite differences, exhaustive
sums.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from criteria import window_rows
from criteria.budget import Budget, from_counts, from_fraction
from criteria.by_name import resolve
from criteria.experiment_context import ExperimentContext
from criteria.measure import measure
from criteria.observe import observe
from criteria.scores import score
from criteria.selection import plan_for
from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy, dissect
from experts.decoder import Part
from experts.effects.instrument import Instrument
from experts.effects.outcome import token_losses
from experts.errors import ExciseError
from experts.modes import Scope
from experts.plan import Plan
from experts.seam import intercepted
from experts.shape import Shape
from experts.stored_arrays import StoredArrays
from experts.sweep.record import CleanForward
from experts.sweep.runner import Runner
from tests.support import tiny
from tests.support.inputs import windows
from tests.support.removals import clean_forward, replay_position
from validate.loss import window_losses

NOTHING = np.zeros((3, 8), dtype=bool)


def setting(
    anatomy: Anatomy, text: Windows, budget: Budget | None = None, **changes: object
) -> ExperimentContext:
    shape = Shape(
        anatomy.shape.layers,
        anatomy.shape.num_experts,
        anatomy.shape.top_k,
        anatomy.shape.groups,
        anatomy.shape.top_groups,
    )
    protected = np.zeros((len(anatomy.layers), anatomy.shape.num_experts), dtype=bool)
    made = ExperimentContext(
        anatomy,
        text,
        4,
        observe(anatomy, text),
        shape,
        budget or from_fraction(shape, 0.5, "layer"),
        protected,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def scores_of(name: str, made: ExperimentContext) -> np.ndarray:
    criterion = resolve(name)
    assert criterion.measurement is not None
    results = measure(criterion.measurement, made)
    return criterion.score(replace(made.statistics, measured={criterion.measurement.key: results}))


def without(anatomy: Anatomy, *removed: tuple[int, int]) -> Plan:
    """The plan that keeps everything but (layer position, expert)."""
    kept = {
        index: tuple(e for e in range(8) if (row, e) not in removed)
        for row, index in enumerate(anatomy.shape.layers)
    }
    return Plan(8, kept)


def cost(anatomy: Anatomy, text: Windows, *removed: tuple[int, int]) -> float:
    """Mean ΔCE of a removal, by really restricting the model."""
    before = window_losses(anatomy.model, text)
    with restricted(anatomy, without(anatomy, *removed)):
        return float((window_losses(anatomy.model, text) - before).mean())


# Causal criteria.


def test_position_is_the_mean_over_tokens() -> None:
    """Σ_t ΔCE_t / T by one whole forward per (position, expert)."""
    anatomy, text = dissect(tiny.build("olmoe")), windows(2, 10)
    found = scores_of("causal_position", setting(anatomy, text))
    expected, instrument = np.zeros((3, 8)), Instrument(anatomy)
    for row in range(2):
        clean = clean_forward(instrument, torch.from_numpy(text.tokens[row : row + 1]), Scope.SEQUENCE)
        for layer in range(3):
            for t in range(9):
                for expert in clean.index[layer][0, t].tolist():
                    marks = torch.zeros(8, dtype=torch.bool)
                    marks[expert] = True
                    loss, _ = replay_position(instrument, clean, t, {layer: marks})
                    expected[layer, expert] += float(loss - clean.losses[0, t]) / 18
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "gpt_oss"])
def test_removal_is_leave_one_out(family: str) -> None:
    anatomy, text = dissect(tiny.build(family)), windows(6)
    made = setting(anatomy, text)
    found = scores_of("causal_removal", made)
    for cell in ((0, 0), (1, 5), (2, 7)):
        assert found[cell] == pytest.approx(cost(anatomy, text, cell), abs=1e-6)
    results = measure(resolve("causal_removal").measurement, made)  # type: ignore[arg-type]
    assert results["per_window"].shape == (6, 3, 8)
    np.testing.assert_allclose(results["per_window"].mean(axis=0), found)


def test_removal_by_divergence() -> None:
    """KL(unpruned ‖ without e), summed over the vocabulary in float64."""
    anatomy, text = dissect(tiny.build("olmoe")), windows(3)
    found = scores_of("causal_removal:outcome=kl", setting(anatomy, text))
    tokens = torch.from_numpy(text.tokens)
    before = torch.log_softmax(tiny.logits(anatomy.model, tokens).double(), -1)[:, :-1]
    with restricted(anatomy, without(anatomy, (1, 4))):
        after = torch.log_softmax(tiny.logits(anatomy.model, tokens).double(), -1)[:, :-1]
    assert found[1, 4] == pytest.approx(float((before.exp() * (before - after)).sum(-1).mean()), abs=1e-6)
    assert (found >= 0).all()


def test_fewer_windows_are_spread_over_the_text() -> None:
    text = windows(10, domains=2)
    made = setting(dissect(tiny.build("olmoe")), text)
    np.testing.assert_array_equal(made.chosen(4).tokens, text.tokens[[0, 3, 6, 9]])
    assert made.chosen(0) is text
    assert made.chosen(99) is text
    padded = replace(text, mask=np.concatenate([text.mask[:, :-1], np.zeros((10, 1), bool)], axis=1))
    with pytest.raises(ExciseError, match="full windows"):
        replace(made, windows=padded).chosen(0)


# Greedy removal.


def backups() -> tuple[Anatomy, Windows]:
    """Layer 1 sends every token to one expert; experts 2 and 6 are twins, so each covers for the other and
    both together matter.
    """
    model = tiny.build("qwen3_moe", num_experts_per_tok=1, norm_topk_prob=True)
    anatomy = dissect(model)
    with torch.no_grad():
        layer = anatomy.layers[1]
        layer.experts.down_proj[2] *= 20
        for parameter in (*layer.experts.parameters(), layer.router.weight):
            parameter[6] = parameter[2]
    tokens = torch.from_numpy(windows(4).tokens[:, :1])
    for _ in range(23):  # the model's own text, so that any damage raises the loss
        tokens = torch.cat([tokens, tiny.logits(model, tokens)[:, -1:].argmax(-1)], dim=1)
    return anatomy, replace(windows(4), tokens=tokens.numpy())


def test_greedy_sees_mutual_backups() -> None:
    """Alone either twin costs nothing, so leave-one-out removes both; greedy removal keeps one."""
    anatomy, text = backups()
    clean = clean_forward(Instrument(anatomy), torch.from_numpy(text.tokens), Scope.CORPUS)
    assert (clean.index[1] == 2).any() or (clean.index[1] == 6).any()
    budget = Budget(12, "layer", 1, "")
    made = setting(anatomy, text, budget)
    alone = scores_of("causal_removal", made)
    assert max(abs(alone[1, 2]), abs(alone[1, 6])) < 1e-6
    assert cost(anatomy, text, (1, 2), (1, 6)) > 0.05
    greedy = scores_of("causal_greedy", made)
    kept = {
        name: plan_for(score_like(made, values), budget, made.shape).kept[1]
        for name, values in (("alone", alone), ("greedy", greedy))
    }
    assert not {2, 6} & set(kept["alone"])
    assert {2, 6} & set(kept["greedy"])


def score_like(made: ExperimentContext, values: np.ndarray):  # type: ignore[no-untyped-def]
    from criteria.scores import Scores

    return Scores(values, made.protected, made.shape.layers, "by hand", "")


@pytest.mark.parametrize("scope", ["layer", pytest.param("global", marks=pytest.mark.slow)])
def test_greedy_equals_brute_force(scope: str) -> None:
    """Every round: the removal that is cheapest given the earlier ones, found by trying all of them with
    restricted models.
    """
    anatomy, text = dissect(tiny.build("olmoe")), windows(3)
    shape = Shape(anatomy.shape.layers, 8, 3)
    budget = Budget(18, scope, 5, "")  # type: ignore[arg-type]
    made = setting(anatomy, text, budget)
    trace = measure(resolve("causal_greedy").measurement, made)["trace"]  # type: ignore[arg-type]
    gone: list[tuple[int, int]] = []
    while len(gone) < 6:
        left = [(row, e) for row in range(3) for e in range(8) if (row, e) not in gone]
        costs = {
            cell: cost(anatomy, text, *gone, cell) - (cost(anatomy, text, *gone) if gone else 0)
            for cell in left
        }
        room = {row: 8 - (6 if scope == "layer" else 5) - sum(r == row for r, _ in gone) for row in range(3)}
        allowed = sorted((value, cell) for cell, value in costs.items() if room[cell[0]] > 0)
        if scope == "layer":
            gone += [min((value, cell) for value, cell in allowed if cell[0] == row)[1] for row in range(3)]
        else:
            gone.append(allowed[0][1])
    assert {(int(layer), int(expert)) for layer, expert, *_ in trace} == set(gone)
    if scope == "global":
        assert [(int(layer), int(expert)) for layer, expert, *_ in trace] == gone
    kept = plan_for(score_like(made, scores_of("causal_greedy", made)), budget, shape)
    assert {
        (row, e)
        for row, index in enumerate(anatomy.shape.layers)
        for e in range(8)
        if e not in kept.kept[index]
    } == set(gone)


@pytest.mark.slow
def test_greedy_settings() -> None:
    """rounds and step are two ways to say the same; a shortlist of everything changes nothing; a cheap start
    needs no leave-one-out.
    """
    made = setting(dissect(tiny.build("olmoe")), windows(3))
    whole = scores_of("causal_greedy:step=2", made)
    np.testing.assert_array_equal(scores_of("causal_greedy:rounds=2", made), whole)
    np.testing.assert_array_equal(scores_of("causal_greedy:step=2,shortlist=8", made), whole)
    cheap = measure(resolve("causal_greedy:step=4,shortlist=4,start=reap").measurement, made)  # type: ignore[arg-type]
    reap = resolve("reap").score(made.statistics)
    for layer in range(3):
        removed = {int(expert) for row, expert, *_ in cheap["trace"] if row == layer}
        assert removed == set(
            np.argsort(reap[layer])[:4].tolist()
        )  # a shortlist as short as the step leaves nothing to choose
    with pytest.raises(ExciseError, match="start=fisher is measured itself"):
        scores_of("causal_greedy:start=fisher", made)
    with pytest.raises(ExciseError, match="step is 0"):
        scores_of("causal_greedy:step=0", made)


def test_greedy_keeps_router_groups_even_and_protected_experts() -> None:
    anatomy, text = dissect(tiny.build("deepseek_v3")), windows(3)
    protected = np.zeros((2, 8), dtype=bool)
    protected[0, [0, 5]] = True
    for scope in ("layer", "global"):
        budget = Budget(8, scope, 4, "")  # type: ignore[arg-type]
        made = setting(anatomy, text, budget, protected=protected)
        trace = measure(resolve("causal_greedy").measurement, made)["trace"]  # type: ignore[arg-type]
        assert len(trace) == 8
        removed = {(int(layer), int(expert)) for layer, expert, *_ in trace}
        assert not removed & {(0, 0), (0, 5)}
        for layer in range(2):
            groups = [
                sum(row == layer and expert // 4 == group for row, expert in removed) for group in range(2)
            ]
            assert groups[0] == groups[1]


def test_greedy_resumes_after_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = setting(dissect(tiny.build("olmoe")), windows(3))
    whole = scores_of("causal_greedy", made)
    kept = replace(made, partial=StoredArrays(tmp_path / "partial", "key"))
    from criteria.greedy_search import Search

    rounds, one_round = [], Search.round

    def counted(self: Search, size: int, shortlist: int) -> None:
        rounds.append(size)
        if len(rounds) == 3:
            raise KeyboardInterrupt
        one_round(self, size, shortlist)

    monkeypatch.setattr(Search, "round", counted)
    with pytest.raises(KeyboardInterrupt):
        scores_of("causal_greedy", kept)
    np.testing.assert_array_equal(scores_of("causal_greedy", kept), whole)
    assert len(rounds) == 3 + 2  # four in all, two of them done before the interruption
    other = replace(kept, partial=StoredArrays(tmp_path / "partial", "other key"))
    assert other.partial.read() == {}


class Memory:
    """A store that keeps everything that was written; `at`: what a run that begins now finds."""

    def __init__(self, at: dict[str, np.ndarray] | None = None) -> None:
        self.at, self.written = at or {}, list[dict[str, np.ndarray]]()

    def read(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self.at.items()}

    def write(self, arrays: dict[str, np.ndarray]) -> None:
        self.written.append({name: array.copy() for name, array in arrays.items()})


@pytest.mark.parametrize(
    ("settings", "scope"),
    [
        ("rounds=4", "layer"),
        ("rounds=4", "global"),
        ("rounds=3,shortlist=5,outcome=kl", "global"),
        ("rounds=2,start=reap,windows=1", "layer"),
        ("step=3,shortlist=3", "layer"),
        ("step=5", "global"),
    ],
)
def test_a_search_ends_alike_wherever_it_was_interrupted(settings: str, scope: str) -> None:
    """After every round it could have been killed in: the same removals, rounds and costs, bit by bit."""
    made = setting(dissect(tiny.build("olmoe")), windows(2, 12), Budget(12, scope, 3, ""))  # type: ignore[arg-type]
    protected = np.zeros((3, 8), dtype=bool)
    protected[1, 4] = True
    made = replace(made, protected=protected, partial=Memory())  # type: ignore[arg-type]
    measurement = resolve(f"causal_greedy:{settings}").measurement
    assert measurement is not None
    whole, kept = measure(measurement, made), made.partial.written  # type: ignore[attr-defined]
    assert len(kept) == whole["trace"][-1, 2] + 1 > 1
    for state in kept:
        again = measure(measurement, replace(made, partial=Memory(state)))  # type: ignore[arg-type]
        assert all(np.array_equal(again[name], whole[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["causal_removal", "causal_removal:outcome=kl,windows=4", "causal_position"])
def test_an_experiment_goes_on_with_other_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after any window, resumed with any batch: the rows of an uninterrupted one, to rounding; with
    its own batch, to the bit.
    """
    monkeypatch.setattr(window_rows, "KEEP_EVERY", -1.0)
    made = replace(setting(dissect(tiny.build("olmoe")), windows(5, 10)), batch=2, partial=Memory())  # type: ignore[arg-type]
    measurement = resolve(name).measurement
    assert measurement is not None
    whole, kept = measure(measurement, made), made.partial.written  # type: ignore[attr-defined]
    assert len(kept) > 1
    for state in kept:
        for batch in (1, 2, 3):
            again = measure(measurement, replace(made, batch=batch, partial=Memory(state)))  # type: ignore[arg-type]
            np.testing.assert_allclose(again["per_window"], whole["per_window"], atol=1e-6)
            assert batch != 2 or np.array_equal(again["per_window"], whole["per_window"])


def test_rounds_are_as_many_as_asked() -> None:
    """Whatever the counts: by hand, unequal, in router groups that lose experts together."""
    olmoe, text = dissect(tiny.build("olmoe")), windows(2, 12)
    shape = Shape(olmoe.shape.layers, 8, 3)
    for counts, wanted in (({1: 6}, 2), ({0: 4, 2: 6}, 4), ({0: 3, 1: 7, 2: 8}, 5)):
        budget = from_counts(shape, counts)
        trace = measure(
            resolve(f"causal_greedy:rounds={wanted},start=reap").measurement, setting(olmoe, text, budget)
        )["trace"]  # type: ignore[arg-type]
        assert trace[:, 2].max() + 1 == wanted
        removed = np.bincount(trace[:, 0].astype(int), minlength=3)
        assert removed.tolist() == [8 - counts.get(layer, 8) for layer in range(3)]
    grouped = dissect(tiny.build("deepseek_v3"))
    for scope in ("layer", "global"):
        budget = Budget(8, scope, 4, "")  # type: ignore[arg-type]
        trace = measure(
            resolve("causal_greedy:rounds=2,start=reap").measurement, setting(grouped, text, budget)
        )["trace"]  # type: ignore[arg-type]
        assert trace[:, 2].max() + 1 == 2


def test_a_step_is_counted_in_experts_also_with_router_groups() -> None:
    """Two groups: step=2 is one expert of each, in both scopes; step=1 cannot be less."""
    anatomy, text = dissect(tiny.build("deepseek_v3")), windows(2, 12)
    for scope, layers in (("layer", 2), ("global", 1)):
        for step in (1, 2, 3):
            made = setting(anatomy, text, Budget(8, scope, 4, ""))  # type: ignore[arg-type]
            trace = measure(resolve(f"causal_greedy:step={step},start=reap").measurement, made)["trace"]  # type: ignore[arg-type]
            assert np.bincount(trace[:, 2].astype(int)).tolist() == [2 * layers] * (8 // (2 * layers))


def test_an_effect_that_is_not_finite_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = setting(dissect(tiny.build("olmoe")), windows(2, 12))
    monkeypatch.setattr(
        "experts.effects.removal.window_effects", lambda clean, _: (clean.losses * torch.nan,) * 2
    )
    with pytest.raises(
        ExciseError, match=r"causal_greedy: an effect is not finite; is the model sound in torch.float32\?"
    ):
        scores_of("causal_greedy:start=reap", made)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("fisher", "start=fisher is measured itself"),
        ("reep", "unknown criterion 'reep'; did you mean reap"),
        ("causal_greedy", "itself"),
    ],
)
def test_a_start_that_cannot_be_is_refused_by_name(start: str, message: str) -> None:
    """Before anything is calibrated."""
    with pytest.raises(ExciseError, match=message):
        resolve(f"causal_greedy:start={start}")
    assert resolve("causal_greedy:start=reversed:reap").searches


@pytest.mark.parametrize(
    ("name", "what"),
    [("causal_greedy:step=0", "step"), ("fisher:probes=0", "probes"), ("integrated:steps=0", "steps")],
)
def test_numbers_that_mean_nothing_are_refused_by_name(name: str, what: str) -> None:
    with pytest.raises(ExciseError, match=f"{what} is 0; it has to be at least 1"):
        resolve(name)


def test_removal_resumes_after_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_rows, "KEEP_EVERY", 0.0)
    made = replace(setting(dissect(tiny.build("olmoe")), windows(6)), batch=2)
    whole = scores_of("causal_removal", made)
    kept, measured = replace(made, partial=StoredArrays(tmp_path / "partial", "key")), []
    run = Runner.clean

    def counted(self: Runner, part: Part, clean: CleanForward, *rest: Any, **named: Any) -> Any:
        if len(clean.tokens) == 2:  # the checks before run on one window
            measured.append(part.rows)
            if len(measured) == 3:  # two batches are kept
                raise KeyboardInterrupt
        return run(self, part, clean, *rest, **named)

    monkeypatch.setattr(Runner, "clean", counted)
    with pytest.raises(KeyboardInterrupt):
        scores_of("causal_removal", kept)
    np.testing.assert_array_equal(scores_of("causal_removal", kept), whole)
    assert len(measured) == 3 + 1, "finished windows are not measured again"


# Planted experts.


def essential() -> tuple[Anatomy, Windows]:
    """Expert 2 of layer 1 shouts, and the text is what the model then says: without it nothing is as
    predicted.
    """
    model = tiny.build("olmoe")
    anatomy = dissect(model)
    with torch.no_grad():
        anatomy.layers[1].experts.down_proj[2] *= 12
    tokens = torch.from_numpy(windows(6).tokens[:, :1])
    for _ in range(23):
        tokens = torch.cat([tokens, tiny.logits(model, tokens)[:, -1:].argmax(-1)], dim=1)
    return anatomy, replace(windows(6), tokens=tokens.numpy())


@pytest.mark.parametrize(
    "name", ["causal_position", "causal_removal", "causal_removal:outcome=kl", "causal_greedy"]
)
def test_every_causal_criterion_finds_the_essential_expert(name: str) -> None:
    anatomy, text = essential()
    values = scores_of(name, setting(anatomy, text))
    assert int(values[1].argmax()) == 2


# Gradients.


@contextmanager
def scaled(anatomy: Anatomy, alpha: Tensor) -> Iterator[None]:
    """Every expert's weighted output times α [L, E]."""

    def scale(layer: int, run, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return run(hidden, index, weight * alpha[layer][index])

    with intercepted(anatomy, scale):
        yield


def losses_at(anatomy: Anatomy, text: Windows, alpha: Tensor) -> Tensor:
    tokens = torch.from_numpy(text.tokens)
    with scaled(anatomy, alpha), torch.no_grad():
        return token_losses(anatomy.model(input_ids=tokens, use_cache=False).logits, tokens)


def test_gradient_equals_finite_differences() -> None:
    anatomy, text = dissect(tiny.build64("olmoe")), windows(2, 8)
    found = scores_of("gradient", setting(anatomy, text))
    for cell in ((0, 1), (1, 3), (2, 6)):
        up, down = (torch.ones(3, 8, dtype=torch.float64) for _ in range(2))
        # Norms and the router's softmax are float32 in any model, so a smaller step would measure their
        # rounding.
        up[cell] += 3e-3
        down[cell] -= 3e-3
        slope = (losses_at(anatomy, text, up).mean() - losses_at(anatomy, text, down).mean()) / 6e-3
        assert found[cell] == pytest.approx(-float(slope), abs=2e-5)
    assert np.abs(found).max() > 0.01
    assert all(parameter.requires_grad for parameter in anatomy.model.parameters()), (
        "the model's own switches were not put back"
    )


def test_gradient_abs_does_not_cancel() -> None:
    """Σ_t |g f·∂L/∂y| / T, with the gradient by the block's output taken by a hook instead of by
    multipliers.
    """
    anatomy, text = dissect(tiny.build64("olmoe")), windows(2, 8)
    made = setting(anatomy, text)
    found, tokens = scores_of("gradient_abs", made), torch.from_numpy(text.tokens)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def watch(layer: int, run, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        if layer != 1:
            return run(hidden, index, weight)
        each = torch.stack(
            [run(hidden, index[:, s : s + 1], weight[:, s : s + 1]) for s in range(index.shape[1])], dim=1
        )
        routed = each.sum(1)
        routed.retain_grad()
        rows.append((index, each, routed))
        return routed

    with intercepted(anatomy, watch):
        token_losses(anatomy.model(input_ids=tokens, use_cache=False).logits, tokens).sum().backward()
    index, each, routed = rows[0]
    assert routed.grad is not None
    slope = (each * routed.grad[:, None]).sum(-1).abs()
    expected = torch.zeros(8, dtype=torch.float64).index_add_(0, index.flatten(), slope.flatten()) / 14
    np.testing.assert_allclose(
        found[1], expected.detach().numpy(), rtol=1e-6
    )  # the router's softmax is float32
    assert (found >= np.abs(scores_of("gradient", made)) - 1e-12).all()


def test_fisher_of_a_single_loss_is_exact() -> None:
    """Windows of two tokens have one loss each: (∂L/∂α)² needs no random signs."""
    anatomy, text = dissect(tiny.build64("olmoe")), windows(3, 2)
    made = setting(anatomy, text)
    expected = np.zeros((3, 8))
    for row in range(3):
        one = replace(made, windows=text.select(np.array([row])))
        expected += scores_of("gradient", one) ** 2
    np.testing.assert_allclose(scores_of("fisher:probes=1", made), expected, rtol=1e-9)


def test_fisher_probes_estimate_the_sum_over_tokens() -> None:
    """Against one backward per token; 400 probes leave a few percent of error."""
    anatomy, text = dissect(tiny.build64("olmoe")), windows(1, 6)
    tokens, exact = torch.from_numpy(text.tokens), torch.zeros(3, 8, dtype=torch.float64)
    alpha = torch.ones(3, 8, dtype=torch.float64, requires_grad=True)
    with scaled(anatomy, alpha):
        for loss in token_losses(anatomy.model(input_ids=tokens, use_cache=False).logits, tokens)[0]:
            exact += torch.autograd.grad(loss, [alpha], retain_graph=True)[0] ** 2
    found = scores_of("fisher:probes=400", setting(anatomy, text))
    np.testing.assert_allclose(found, exact.numpy(), rtol=0.3, atol=float(exact.max()) * 0.02)


def test_integrated_gradient_is_complete() -> None:
    """Its sum over all experts is what taking all of them away costs, where no choice of the router can jump:
    all 8 are active.
    """
    model = tiny.build("olmoe", num_experts_per_tok=8).double()
    model.set_experts_implementation("eager")
    anatomy, text = dissect(model), windows(2, 8)
    found = scores_of("integrated:steps=64", setting(anatomy, text, Budget(24, "layer", 8, "")))
    whole = (
        losses_at(anatomy, text, torch.zeros(3, 8, dtype=torch.float64)).mean()
        - losses_at(anatomy, text, torch.ones(3, 8)).mean()
    )
    assert found.sum() == pytest.approx(float(whole), rel=1e-3)


@pytest.mark.parametrize("name", ["gradient", "fisher", "integrated"])
@pytest.mark.parametrize("family", ["olmoe", "deepseek_v2", "gpt_oss"])
def test_gradients_in_bfloat16(name: str, family: str) -> None:
    model = tiny.build(family).to(torch.bfloat16)
    anatomy, text = dissect(model), windows(2)
    made = setting(anatomy, text)
    values = scores_of(name, made)
    assert np.isfinite(values).all()
    assert values.any()


# By name.


def test_settings_are_parsed_and_refused() -> None:
    found = resolve("causal_removal:windows=16,mode=zero")
    assert found.measurement is not None
    assert found.measurement.values == {"mode": "zero", "outcome": "loss", "windows": 16}
    assert resolve("reversed:causal_removal:windows=16,mode=zero").measurement == found.measurement
    for name, message in (
        ("causal_removal:window=3", "no setting 'window=3'; it has mode=… what removal means"),
        ("causal_removal:windows=some", "windows: expected a whole number, got 'some'"),
        ("causal_removal:windows=1,windows=2", "windows is given twice in 'windows=1,windows=2'"),
        ("refit_residual:tokens=-1", "tokens is -1; it has to be at least 0 .tokens used, .*; 0 = all"),
        ("refit_residual:tokens=--1", "tokens: expected a whole number, got '--1'"),
        ("causal_removal:mode=mean", "mode: expected one of zero, renormalize, reroute, got 'mean'"),
        ("causal_remova", "did you mean causal_removal"),
        ("reap:windows=3", "unknown criterion 'reap:windows=3'"),
    ):
        with pytest.raises(ExciseError, match=message):
            resolve(name)


def test_without_the_measurement_there_is_no_score() -> None:
    anatomy, text = dissect(tiny.build("olmoe")), windows(2)
    with pytest.raises(ExciseError, match="has not been measured"):
        score(resolve("causal_removal"), observe(anatomy, text), anatomy.shape.layers, NOTHING, "", "")


# What a review found.


@pytest.mark.parametrize(
    "name",
    [
        "causal_greedy",
        "causal_greedy:shortlist=2",
        "causal_greedy:start=reap,shortlist=2,step=3",
        "causal_greedy:outcome=kl,shortlist=4",
    ],
)
def test_greedy_reaches_the_floor_of_a_layer_and_goes_on_elsewhere(name: str) -> None:
    """Floor = top_k: a layer that is full is neither measured nor on a shortlist, and the budget is met."""
    anatomy, text = dissect(tiny.build("olmoe")), windows(2)
    budget = Budget(10, "global", 3, "")
    made = setting(anatomy, text, budget)
    trace = measure(resolve(name).measurement, made)["trace"]  # type: ignore[arg-type]
    counts = 8 - np.bincount(trace[:, 0].astype(int), minlength=3)
    assert len(trace) == 14
    assert counts.min() == 3
    assert counts.sum() == 10


def test_greedy_says_when_nothing_is_left_to_remove() -> None:
    anatomy, text = dissect(tiny.build("olmoe")), windows(2)
    protected = np.ones((3, 8), dtype=bool)
    protected[0] = False
    with pytest.raises(
        ExciseError,
        match="7 more experts have to go, but protected experts and the floor of every layer leave none",
    ):
        scores_of("causal_greedy", setting(anatomy, text, Budget(12, "global", 3, ""), protected=protected))


def test_greedy_by_divergence_adds_up() -> None:
    """The costs in the trace add up to KL(unpruned ‖ what is left), one removal a round."""
    anatomy, text = dissect(tiny.build("olmoe")), windows(2)
    trace = measure(
        resolve("causal_greedy:outcome=kl").measurement, setting(anatomy, text, Budget(20, "global", 3, ""))
    )["trace"]  # type: ignore[arg-type]
    removed = [(int(layer), int(expert)) for layer, expert, *_ in trace]
    tokens = torch.from_numpy(text.tokens)
    before = torch.log_softmax(tiny.logits(anatomy.model, tokens).double(), -1)[:, :-1]
    with restricted(anatomy, without(anatomy, *removed)):
        after = torch.log_softmax(tiny.logits(anatomy.model, tokens).double(), -1)[:, :-1]
    assert trace[:, 3].sum() == pytest.approx(
        float((before.exp() * (before - after)).sum(-1).mean()), abs=1e-5
    )


@pytest.mark.parametrize("name", ["fisher", "gradient", "integrated:steps=2"])
def test_an_attempt_that_runs_out_of_memory_counts_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = setting(dissect(tiny.build("olmoe")), windows(4))
    expected, grad, calls = scores_of(name, made), torch.autograd.grad, []

    def hungry(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return grad(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.autograd, "grad", hungry)
    np.testing.assert_allclose(scores_of(name, replace(made, batch=2)), expected, rtol=1e-4, atol=1e-9)
    assert len(calls) > 3
