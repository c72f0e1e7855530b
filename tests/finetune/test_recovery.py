"""The parts of recovery: losses by hand, the shared teacher, adapters and their merge, storage, the lead over
random plans.
"""

import itertools
import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from experts.anatomy import Anatomy, dissect
from experts.disk.fingerprint import fingerprint
from experts.disk.layout import lay_out
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from experts.plan import Plan
from experts.sharing import kept_counts, sharing
from experts.surgery import cut
from finetune.adapters import adapt, merged, remove
from finetune.losses import TeacherLogits, cross_entropy, divergence, log_softened, top_tokens
from finetune.settings import Training
from finetune.targets import find_targets
from finetune.teacher import CachedTeacher, SharedTeacher, cache_teacher, is_cached
from prune.checkpoint.provenance import check_teacher, pruned_plan
from prune.checkpoint.slices import by_name, slice_layout
from prune.checkpoint.stored_weights import StoredWeights
from prune.checkpoint.write import TrainedWeights, export
from tests.support import tiny
from tests.support.inputs import unequal_plan, uniform_plan, windows
from validate.lead import lead_of, recovery_of
from validate.measure import Measure
from validate.statistics import clustered_share
from validate.verdict import Verdict, survival

EVEN = (0, 1, 3, 4, 5, 7)  # three experts of either router group


def plan_for(anatomy: Anatomy) -> Plan:
    return uniform_plan(anatomy.shape.layers, EVEN)


# Losses.


def test_divergence_by_hand() -> None:
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2): KL = 1/2·ln 2 + 0 + 1/4·ln(1/2) = 1/4·ln 2."""
    teacher = torch.tensor([[[0.5, 0.25, 0.25]]]).log()
    student = torch.tensor([[[0.25, 0.25, 0.5], [1.0, 0.0, 0.0]]]).log()  # the last position predicts nothing
    assert float(divergence(TeacherLogits(teacher), student, 1.0)) == pytest.approx(math.log(2) / 4)
    # One cached token: two outcomes, (1/2, 1/2) against (1/4, 3/4).
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert float(
        divergence(TeacherLogits(teacher[..., :1], torch.tensor([[[0]]])), student, 1.0)
    ) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_divergence_is_that_of_torch_and_its_gradient(temperature: float) -> None:
    torch.manual_seed(0)
    one, other = (
        torch.randn(2, 5, 11, dtype=torch.float64),
        torch.randn(2, 5, 11, dtype=torch.float64, requires_grad=True),
    )
    found = divergence(TeacherLogits(log_softened(one[:, :-1], temperature)), other, temperature)
    flat = [torch.log_softmax(logits[:, :-1] / temperature, -1).reshape(-1, 11) for logits in (one, other)]
    expected = temperature**2 * functional.kl_div(flat[1], flat[0], reduction="batchmean", log_target=True)
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    slopes = [torch.autograd.grad(loss, other)[0] for loss in (found, expected)]
    assert torch.allclose(*slopes, atol=1e-12)


def test_cached_tokens_bound_the_divergence_from_below() -> None:
    torch.manual_seed(1)
    one, other = 3 * torch.randn(2, 5, 11), torch.randn(2, 5, 11)
    whole = float(divergence(TeacherLogits(log_softened(one[:, :-1], 2.0)), other, 2.0))
    parts = [float(divergence(top_tokens(one[:, :-1], 2.0, k), other, 2.0)) for k in (1, 4, 10, 11, 50)]
    assert parts == sorted(parts)
    assert parts[0] < whole
    assert parts[3:] == pytest.approx([whole, whole])


def test_cross_entropy_is_the_models_own_loss() -> None:
    model, tokens = tiny.build("olmoe"), tiny.ids()
    found = model(input_ids=tokens, labels=tokens)
    assert cross_entropy(found.logits, tokens).item() == pytest.approx(found.loss.item(), abs=1e-6)


# Teacher and student in one set of weights.


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("unequal", [False, True])
def test_twins(family: str, unequal: bool) -> None:
    model, surgical = tiny.build(family), tiny.build(family)
    anatomy = dissect(model)
    plan = unequal_plan(anatomy.shape.layers) if unequal else plan_for(anatomy)
    cut(dissect(surgical), plan)
    whole, state = tiny.logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with suppress(KeyboardInterrupt), sharing(anatomy, plan) as twin:
        assert torch.equal(tiny.logits(model), tiny.logits(surgical))
        assert kept_counts(anatomy) == plan.counts
        model.train()
        with twin.as_teacher():
            assert not any(module.training for module in model.modules())
            assert torch.allclose(tiny.logits(model), whole, atol=5e-6)
        assert all(module.training for module in model.modules())
        model.eval()
        assert torch.equal(tiny.logits(model), tiny.logits(surgical))
        raise KeyboardInterrupt
    assert torch.equal(tiny.logits(model), whole)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_twins_share_memory() -> None:
    anatomy = dissect(tiny.build("olmoe"))
    addresses = {parameter.data_ptr() for parameter in anatomy.model.parameters()}
    with sharing(anatomy, plan_for(anatomy)):
        for layer in anatomy.layers:
            assert {parameter.data_ptr() for parameter in layer.experts.parameters()} <= addresses


def test_teacher_on_disk_says_what_the_one_in_memory_says(tmp_path: Path) -> None:
    model, text = tiny.build("olmoe"), windows()
    anatomy, tokens, rows = dissect(model), torch.from_numpy(text.tokens[2:4]), torch.tensor([2, 3])
    cache_teacher(model, text, 2.0, 259, 4, tmp_path, "k")
    assert is_cached(tmp_path, "k")
    assert not is_cached(tmp_path, "other")
    assert not is_cached(tmp_path / "nowhere", "k")
    adapted = adapt(model, find_targets(anatomy, ("router",)), Training(), 0)
    with sharing(anatomy, plan_for(anatomy)) as twin:
        shared = SharedTeacher(twin, 2.0, adapted.peft.disable_adapter).targets(rows, tokens)
    cached = CachedTeacher(tmp_path).targets(rows, tokens)
    assert cached.ids is not None
    assert torch.allclose(
        shared.logs, torch.empty_like(shared.logs).scatter(-1, cached.ids, cached.logs), atol=1e-5
    )


# Adapters.


def stirred(model: PreTrainedModel, seed: int = 0) -> None:
    """Adapters that do something: B is random instead of zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=generator)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_adapter_and_merge_and_reload(family: str, saved: dict[str, Path], tmp_path: Path) -> None:
    """Merge differs by rounding; the saved adapter on the exported checkpoint by nothing; the merged
    checkpoint by nothing.
    """
    layout = lay_out(open_checkpoint(saved[family]))
    plan = uniform_plan(layout.shape.layers, EVEN)
    export(layout, plan, tmp_path / "pruned")
    anatomy = dissect(AutoModelForCausalLM.from_pretrained(saved[family]))
    pieces = by_name(slice_layout(layout, plan))
    with sharing(anatomy, plan):
        adapted = adapt(
            anatomy.model, find_targets(anatomy, ("attention", "router", "experts")), Training(rank=4), 0
        )
        stirred(adapted.peft)
        bare = tiny.logits(AutoModelForCausalLM.from_pretrained(tmp_path / "pruned"))
        trained = tiny.logits(adapted.peft)
        adapted.peft.save_pretrained(tmp_path / "adapter")
        again = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tmp_path / "pruned"), tmp_path / "adapter"
        )
        assert torch.equal(tiny.logits(again), trained)
        assert (trained - bare).abs().max() > 0.05
        storage = StoredWeights(anatomy.model, pieces)
        with merged(adapted, storage.rounded) as weights:
            assert weights.keys() == set(adapted.targets.weights)
            inside = tiny.logits(anatomy.model)
            changed = storage.write(weights, tmp_path / "merged")
            export(layout, plan, tmp_path / "out", recovered=TrainedWeights(changed, {"plan": plan.digest}))
        assert torch.equal(tiny.logits(anatomy.model), bare)
    assert (inside - trained).abs().max() < 5e-5
    assert torch.equal(tiny.logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), inside)
    before, after = (open_checkpoint(tmp_path / name).tensors for name in ("pruned", "out"))
    assert before.keys() == after.keys()
    for name in before.keys() - changed.keys():
        one, other = (
            stored.file.read_bytes()[stored.start : stored.end] for stored in (before[name], after[name])
        )
        assert one == other, name
    assert json.loads((tmp_path / "out" / "excise_recovery.json").read_text()) == {"plan": plan.digest}


def test_targets_by_name() -> None:
    anatomy = dissect(tiny.build("qwen2_moe"))
    router = find_targets(anatomy, ("router_only",))
    assert router == find_targets(anatomy, ("router",))
    assert router.weights == tuple(f"model.layers.{i}.mlp.gate.weight" for i in range(3))
    experts = find_targets(anatomy, ("experts",))
    assert len(experts.weights) == 6
    assert not experts.modules
    attention = find_targets(anatomy, ("attention",))
    assert len(attention.modules) == 12
    assert not attention.parameters
    assert find_targets(anatomy, ("q_proj", "experts.down_proj")).weights == (
        *(f"model.layers.{i}.self_attn.q_proj.weight" for i in range(3)),
        *(f"model.layers.{i}.mlp.experts.down_proj" for i in range(3)),
    )
    assert find_targets(anatomy, ("attention", "q_proj")) == attention, "named twice, adapted once"
    with pytest.raises(
        ExciseError,
        match=(
            r"'qkv' matches nothing in this model; there is attention, router, "
            r"experts, self_attn.q_proj, .*mlp.experts.down_proj"
        ),
    ):
        find_targets(anatomy, ("attention", "qkv"))


def test_an_adapters_configuration_names_no_layers() -> None:
    anatomy = dissect(tiny.build("olmoe"))
    config = adapt(
        anatomy.model, find_targets(anatomy, ("attention", "experts")), Training(), 0
    ).peft.peft_config["default"]
    assert config.target_modules == {
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
    }
    assert config.target_parameters == {"mlp.experts.down_proj", "mlp.experts.gate_up_proj"}


def test_a_merge_rounds_once_and_refuses_what_is_not_finite() -> None:
    anatomy = dissect(tiny.build("olmoe"))
    adapted = adapt(anatomy.model, find_targets(anatomy, ("router",)), Training(), 0)
    stirred(adapted.peft)
    gate = anatomy.layers[0].router
    layer: Any = adapted.peft.base_model.model.model.layers[0].mlp.gate
    expected = (gate.weight + layer.get_delta_weight("default")).detach().bfloat16()
    with merged(adapted, lambda _, weight: weight.bfloat16()) as weights:
        assert torch.equal(weights["model.layers.0.mlp.gate.weight"], expected.float())
    adapted = adapt(anatomy.model, find_targets(anatomy, ("router",)), Training(), 0)
    stirred(adapted.peft)
    with (
        pytest.raises(
            ExciseError, match=r"model\.layers\.0\.mlp\.gate\.weight: the merged weight is not finite"
        ),
        merged(adapted, lambda _, weight: weight * math.inf),
    ):
        pass
    remove(adapted)


# Storage.


def test_weights_that_cannot_be_written_back_are_refused(saved: dict[str, Path]) -> None:
    layout = lay_out(open_checkpoint(saved["olmoe"]))
    model = AutoModelForCausalLM.from_pretrained(saved["olmoe"])
    pieces = by_name(slice_layout(layout, uniform_plan(layout.shape.layers, tuple(range(8)))))
    weights = {"model.layers.0.mlp.experts.down_proj": model.model.layers[0].mlp.experts.down_proj}
    name = "model.layers.0.mlp.experts.3.down_proj.weight"
    StoredWeights(model, pieces).check(weights)

    def changed(**fields: Any) -> StoredWeights:
        return StoredWeights(model, {**pieces, name: replace(pieces[name], **fields)})

    with pytest.raises(
        ExciseError, match=rf"experts\.down_proj is stored quantised \({name} is F8_E4M3\).*unquantised"
    ):
        changed(dtype="F8_E4M3").check(weights)
    with pytest.raises(ExciseError, match=r"has shape \[32, 12\], needs \[32, 24\]"):
        changed(shape=(32, 12)).check(weights)
    with pytest.raises(ExciseError, match="stored in 2 precisions"):
        changed(dtype="BF16").check(weights)
    with pytest.raises(ExciseError, match="the checkpoint has no such tensor; leave it out"):
        StoredWeights(model, {key: piece for key, piece in pieces.items() if key != name}).check(weights)


def test_an_export_refuses_changes_that_do_not_fit(saved: dict[str, Path], tmp_path: Path) -> None:
    layout = lay_out(open_checkpoint(saved["olmoe"]))
    plan = uniform_plan(layout.shape.layers)
    stored = layout.checkpoint.tensors["model.layers.0.mlp.gate.weight"]
    for changed, message in (
        (
            {"model.layers.9.mlp.gate.weight": stored},
            "the pruned checkpoint has no tensor model.layers.9.mlp.gate.weight",
        ),
        ({stored.name: stored}, r"changed to F32 \[8, 32\], stored as F32 \[6, 32\]"),
    ):
        with pytest.raises(ExciseError, match=message):
            export(layout, plan, tmp_path / "out", recovered=TrainedWeights(changed, {}))
        assert not (tmp_path / "out").exists()


# Provenance.


def test_a_folder_says_where_it_comes_from(saved: dict[str, Path], tmp_path: Path) -> None:
    layout = lay_out(open_checkpoint(saved["olmoe"]))
    plan, mark = uniform_plan(layout.shape.layers), fingerprint(layout.checkpoint)
    export(layout, plan, tmp_path / "pruned")
    assert pruned_plan(tmp_path / "pruned", layout, mark) == plan
    with pytest.raises(ExciseError, match="is not a folder"):
        pruned_plan(tmp_path / "nowhere", layout, mark)
    other = lay_out(open_checkpoint(tiny.save(tiny.build("olmoe", seed=1), tmp_path / "other")))
    with pytest.raises(ExciseError, match=r"is not that of .*other; was it trained or edited since"):
        pruned_plan(tmp_path / "pruned", other, "")
    (tmp_path / "pruned" / "excise_plan.json").write_text(
        json.dumps(uniform_plan(layout.shape.layers, (0, 1, 2, 3)).to_json())
    )
    with pytest.raises(ExciseError, match="does not hold the tensors its excise_plan.json promises"):
        pruned_plan(tmp_path / "pruned", layout, mark)
    (tmp_path / "pruned" / "excise_recovery.json").write_text("{}")
    with pytest.raises(ExciseError, match="was recovered already"):
        pruned_plan(tmp_path / "pruned", layout, mark)
    with pytest.raises(
        ExciseError, match=r"no excise_plan\.json, so it cannot be told which experts of which model it keeps"
    ):
        pruned_plan(saved["olmoe"], layout, mark)


def test_another_teacher(saved: dict[str, Path], tmp_path: Path) -> None:
    check_teacher(tiny.save(tiny.build("olmoe", seed=1), tmp_path / "same"), saved["olmoe"])
    with pytest.raises(
        ExciseError, match=r"has another architecture \(model_type mixtral\) than .*\(olmoe\)"
    ):
        check_teacher(saved["mixtral"], saved["olmoe"])
    with pytest.raises(ExciseError, match=r"has another vocabulary \(vocab_size 300\) than .*\(259\)"):
        check_teacher(tiny.save(tiny.build("olmoe", vocab_size=300), tmp_path / "larger"), saved["olmoe"])
    words = tiny.save(tiny.build("olmoe"), tmp_path / "words") / "tokenizer.json"
    tokenizer = json.loads(words.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    words.write_text(json.dumps(tokenizer))
    with pytest.raises(ExciseError, match=r"has another vocabulary \(tokenizer\.json\)"):
        check_teacher(tmp_path / "words", saved["olmoe"])


# The lead.


class Table:
    """An evaluator whose values are given."""

    def __init__(self, values: dict[str, list[float]]) -> None:
        self.rows = {name: np.array(row) for name, row in values.items()}

    def values(self, plan: Plan | None) -> Any:
        return self.rows["full" if plan is None else plan.criterion]


def measure(values: dict[str, list[float]]) -> Measure:
    count = len(values["full"])
    return Measure("loss", "nats", Table(values), np.ones(count), np.arange(count))  # type: ignore[arg-type]


def named(name: str, expert: int) -> Plan:
    return Plan(8, {0: (0, expert)}, criterion=name)


VERDICTS: tuple[Verdict, ...] = ("beats random", "not distinguishable", "worse than random")
OWN, RANDOMS = named("own", 1), [named(f"r{i}", 2 + i) for i in range(3)]
BEFORE = {
    "full": [1.0, 2, 3, 4],
    "own": [2.0, 3, 4, 5.2],
    "r0": [4.0, 5, 6, 7],
    "r1": [4.1, 5, 6, 7.1],
    "r2": [3.9, 5, 6, 6.9],
}


def test_the_lead_by_hand() -> None:
    """Before: own +1.05, random +3 ± .05; after: own +.5, random +1 ± .05.

    Lead 1.95 → .5, of which .5 / 1.95 is kept.
    """
    after = {
        "full": BEFORE["full"],
        "own": [1.5, 2.5, 3.5, 4.5],
        "r0": [2.0, 3, 4, 5],
        "r1": [2.1, 3, 4, 5.1],
        "r2": [1.9, 3, 4, 4.9],
    }
    found = lead_of(OWN, RANDOMS, RANDOMS, measure(BEFORE), measure(after), 0)
    assert (found.lead_before, found.lead_after) == (pytest.approx(1.95), pytest.approx(0.5))
    assert found.kept_share == pytest.approx(0.5 / 1.95)
    assert found.kept_interval.low <= found.kept_share <= found.kept_interval.high
    # t = (1.05 − 3) / (.05·√(4/3)) and (.5 − 1) / (.05·√(4/3)), 2 degrees of freedom: P = 1/2 + t / (2·√(2 +
    # t²)).
    for chance, gap in ((found.before, 1.95), (found.after, 0.5)):
        t = -gap / (0.05 * math.sqrt(4 / 3))
        assert chance.p == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)))
    assert found.verdict == "survives"
    assert found.interval_before == found.before.interval, "the same random plans"
    own = recovery_of(OWN, measure(BEFORE), measure(after), 0)
    assert (own.before, own.after, own.share) == (
        pytest.approx(1.05),
        pytest.approx(0.5),
        pytest.approx(0.55 / 1.05),
    )
    assert own.share_interval.low <= own.share <= own.share_interval.high


@pytest.mark.parametrize(
    ("own_after", "verdict"),
    [([1.99, 3, 4, 5.01], "not shown"), ([4.0, 5, 6, 7], "reversed"), ([1.2, 2.2, 3.2, 4.2], "survives")],
)
def test_what_becomes_of_a_lead(own_after: list[float], verdict: str) -> None:
    after = {
        "full": BEFORE["full"],
        "own": own_after,
        "r0": [2.0, 3, 4, 5],
        "r1": [2.1, 3, 4, 5.1],
        "r2": [1.9, 3, 4, 4.9],
    }
    assert lead_of(OWN, RANDOMS, RANDOMS, measure(BEFORE), measure(after), 0).verdict == verdict


def test_no_lead_to_keep() -> None:
    """Whatever comes after: what was not there cannot survive, and cannot be reversed."""
    for before, after in itertools.product(VERDICTS[1:], VERDICTS):
        assert survival(before, after) == "no lead before"
    found = {after: survival("beats random", after) for after in VERDICTS}
    expected = {
        "beats random": "survives",
        "not distinguishable": "not shown",
        "worse than random": "reversed",
    }
    assert found == expected
    same = {**BEFORE, "own": [4.0, 5.0, 6.0, 7.0]}
    found = lead_of(OWN, RANDOMS, RANDOMS, measure(same), measure(BEFORE), 0)
    assert found.verdict == "no lead before"
    assert math.isnan(found.kept_share)
    assert found.kept_interval.reason == "what it is a share of does not differ significantly from 0"


def test_share_over_documents_by_hand() -> None:
    """Documents (2 + 2) / (4 + 4) and 6 / 8 with weights 1 and 2: (4 + 12) / (8 + 16) = 2/3; each alone is
    1/2 and 3/4.
    """
    share, interval = clustered_share(
        np.array([2.0, 2, 6]), np.array([4.0, 4, 8]), np.array([1.0, 1, 2]), np.array([0, 0, 1]), seed=0
    )
    assert share == pytest.approx(2 / 3)
    assert (interval.low, interval.high) == (pytest.approx(1 / 2), pytest.approx(3 / 4))
    assert math.isnan(clustered_share(np.ones(2), np.array([-1.0, 1.0]), np.ones(2), np.arange(2))[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ce": 0, "kl": 0}, "nothing to learn from"),
        ({"random_plans": 2}, "at least 3 random plans"),
        ({"targets": ["router_only", "experts"]}, "router_only is for routers alone"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**settings)


def test_a_share_that_some_resamples_cannot_have_is_nan_without_a_warning() -> None:
    """Ten items of which one was lost: a third of the resamples hold no lost item, so there is nothing to
    take a share of.
    """
    lost, back = np.array([1.0] + [0.0] * 9), np.zeros(10)
    share, interval = clustered_share(back, lost + 0.0, np.ones(10), np.arange(10))
    assert math.isnan(share)
    assert interval.reason == "what it is a share of does not differ significantly from 0"
    share, interval = clustered_share(
        np.array([1.0, 0.0]), np.array([2.0, 1e-300]), np.array([1.0, 1.0]), np.arange(2)
    )
    assert share == pytest.approx(0.5)
    assert interval.low >= 0
