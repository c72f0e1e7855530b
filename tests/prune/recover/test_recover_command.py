"""`excise finetune` on a small model: files, control, resume, what stops it, and the teacher on disk."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from criteria.text.windows import Windows
from experts.anatomy import dissect
from experts.disk.companions import RECOVERY
from experts.disk.layout import lay_out
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from experts.plan import Plan
from experts.sharing import sharing
from finetune import recovery as recover_module
from finetune import trainer as trainer_module
from finetune.guards import check_counts, check_moved, checksums
from finetune.recovery import Job, recovered
from finetune.results import RecoveryJson, TrainingJson
from finetune.settings import Training
from finetune.teacher import SharedTeacher
from finetune.training_log import read_rows
from prune.checkpoint.write import export
from prune.recipe.read import read_recipe
from prune.run.pipeline import Run
from prune.session.prepare import prepare
from prune.typed_json import problems
from tests.support import tiny
from tests.support.inputs import uniform_plan, windows
from tests.support.interruptions import without_time
from tests.support.recipes import invoke
from tests.support.tasks import task_file
from validate.loss import window_losses


def run(path: Path, out: Path, *overrides: str) -> dict[str, Any]:
    outcome = Run(prepare(read_recipe(path, overrides), out)).execute().result["recovery"]
    assert isinstance(outcome, dict)
    return outcome


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# A whole run.


def test_a_recovery_and_what_it_leaves(recovery_recipe: Path, tmp_path: Path, saved: dict[str, Path]) -> None:
    out, folder = tmp_path / "run", task_file(tmp_path / "tasks")
    tasks = f"validate.tasks={{names: [guess], include: {folder}, random_plans: 5}}"
    found = invoke("finetune", recovery_recipe, "-o", out, "--set", tasks)
    assert found.exit_code == 0, found.stderr
    result = json.loads(found.stdout)
    assert result == json.loads((out / "recovery.json").read_text())
    assert [plan["name"] for plan in result["plans"]] == ["criterion", "random-0", "random-1", "random-2"]
    for plan in result["plans"]:
        loss, task = plan["measures"]
        assert (loss["name"], task["name"]) == ("loss", "guess")
        assert [row["step"] for row in plan["curve"]] == [0, 2, 4]
        assert [row["tokens"] for row in plan["curve"]] == [0, 2 * 4 * 64, 4 * 4 * 64]
        assert plan["curve"][0]["delta"] == pytest.approx(loss["before"], abs=1e-6)
        assert plan["curve"][-1]["delta"] == pytest.approx(loss["after"], abs=1e-5), "merged and not merged"
    assert [one["name"] for one in result["leads"]] == ["loss", "guess"]
    _check_numbers(out, result)
    _check_checkpoint(out, saved["olmoe"])
    report = (out / "recovery.md").read_text()
    for word in (
        *(one["verdict"] for one in result["leads"]),
        "mean of 3 random",
        "KL to the teacher",
        "LoRA of rank 4",
    ):
        assert word in report
    assert "pruned" in yaml.safe_load((out / "recovered" / "README.md").read_text().split("---\n")[1])["tags"]
    assert "Then trained: LoRA of rank 4" in (out / "recovered" / "README.md").read_text()
    assert len(rows(out / "healing.csv")) == 4 * 3
    assert len(rows(out / "recovery" / "random-1" / "training.csv")) == 4
    provenance = json.loads((out / "recovered" / RECOVERY).read_text())
    assert not list(problems(provenance, RecoveryJson))
    assert provenance["training"].keys() == TrainingJson.__annotations__.keys()
    assert not list(out.rglob("*.new")) + list(out.rglob("states")) + list(out.rglob("merged"))
    assert "finetune" in yaml.safe_load((out / "recipe.yaml").read_text())


def _check_numbers(out: Path, result: dict[str, Any]) -> None:
    """ΔCE before and after, and the lead, from the raw rows alone."""

    def means(name: str) -> dict[str, float]:
        table = rows(out / name)
        return {
            digest: sum(float(r["loss"]) * float(r["tokens"]) for r in table if r["digest"] == digest)
            / sum(float(r["tokens"]) for r in table if r["digest"] == digest)
            for digest in {row["digest"] for row in table}
        }

    before, after = means("losses.csv"), means("recovered_losses.csv")
    assert after["full"] == before["full"]
    for plan in result["plans"]:
        assert plan["measures"][0]["before"] == pytest.approx(
            before[plan["digest"]] - before["full"], abs=1e-12
        )
        assert plan["measures"][0]["after"] == pytest.approx(after[plan["digest"]] - after["full"], abs=1e-12)
    own, *randoms = [plan["digest"] for plan in result["plans"]]
    lead = result["leads"][0]
    assert lead["before"]["random"]["digests"][:3] == lead["after"]["random"]["digests"] == randoms
    assert len(lead["before"]["random"]["digests"]) == 20, "all that were measured before recovery"
    for name, means_ in (("lead_before", before), ("lead_after", after)):
        assert lead[name] == pytest.approx(
            np.mean([means_[digest] for digest in randoms]) - means_[own], abs=1e-12
        )


def _check_checkpoint(out: Path, source: Path) -> None:
    """The names of the pruned one, other weights where targets are, the adapter on the pruned one says the
    same.
    """
    pruned, healed = (open_checkpoint(out / name).tensors for name in ("checkpoint", "recovered"))
    assert {n: (t.dtype, t.shape) for n, t in pruned.items()} == {
        n: (t.dtype, t.shape) for n, t in healed.items()
    }
    one, other = (load_file(out / name / "model.safetensors") for name in ("checkpoint", "recovered"))
    moved = {name for name in one if not torch.equal(one[name], other[name])}
    assert moved == {name for name in one if "proj" in name or ".gate.weight" in name}
    assert (out / "recovered" / "config.json").read_bytes() == (
        out / "checkpoint" / "config.json"
    ).read_bytes()
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(out / "checkpoint"), out / "adapter"
    )
    merged = AutoModelForCausalLM.from_pretrained(out / "recovered")
    assert torch.allclose(tiny.logits(adapted), tiny.logits(merged), atol=1e-4)
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(out / "checkpoint")


@pytest.mark.slow
def test_same_recipe_same_numbers_and_a_second_run_trains_nothing(
    recovery_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(recovery_recipe, tmp_path / "one")
    assert without_time(run(recovery_recipe, tmp_path / "two")) == without_time(first)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded or trained again")

    for module, name in (("finetune.recovery", "_train"), ("experts.load_anatomy", "load_network")):
        monkeypatch.setattr(f"{module}.{name}", never)
    assert run(recovery_recipe, tmp_path / "one") == first


@pytest.mark.slow
def test_more_random_plans_train_only_those(
    recovery_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(recovery_recipe, tmp_path / "run")
    train, trained = recover_module._train, []

    def counting(job: Job, *rest: Any) -> None:
        trained.append(job.folder.name)
        train(job, *rest)

    monkeypatch.setattr(recover_module, "_train", counting)
    second = run(recovery_recipe, tmp_path / "run", "finetune.random_plans=4", "finetune.unpruned=true")
    assert trained == ["random-3", "unpruned"]
    assert without_time({"plans": second["plans"][:4]}) == without_time({"plans": first["plans"]})
    assert second["plans"][-1]["measures"][0]["before"] == pytest.approx(0, abs=1e-9)
    assert second["plans"][-1]["measures"][0]["share"] is None


def test_without_control_nothing_is_claimed(recovery_recipe: Path, tmp_path: Path) -> None:
    result = run(
        recovery_recipe,
        tmp_path / "run",
        "finetune.random_plans=0",
        "finetune.kl=0",
        "finetune.targets=router_only",
    )
    assert result["leads"] == []
    assert [plan["name"] for plan in result["plans"]] == ["criterion"]
    assert "nothing can be said of the lead" in (tmp_path / "run" / "recovery.md").read_text()
    assert result["training"]["teacher"] is None
    one, other = (
        load_file(tmp_path / "run" / name / "model.safetensors") for name in ("checkpoint", "recovered")
    )
    assert {name for name in one if not torch.equal(one[name], other[name])} == {
        f"model.layers.{i}.mlp.gate.weight" for i in range(3)
    }


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_teacher_on_disk(scope: str, recovery_recipe: Path, tmp_path: Path) -> None:
    """With the whole vocabulary cached it teaches what the one in memory does; unequal layers load with their
    own class.
    """
    settings = (
        "finetune.teacher.top_k=259",
        f"prune.scope={scope}",
        "prune.fraction=0.4",
        "criteria=[reap_sum]",
    )
    results = [
        run(recovery_recipe, tmp_path / keep, f"finetune.teacher.keep={keep}", *settings)
        for keep in ("memory", "disk")
    ]
    assert [result["training"]["teacher"]["keep"] for result in results] == ["memory", "disk"]
    for one, other in zip(*(result["plans"] for result in results), strict=True):
        assert one["digest"] == other["digest"]
        assert one["measures"][0]["after"] == pytest.approx(other["measures"][0]["after"], abs=2e-4)
    assert not list((tmp_path / "disk").rglob("pruned"))


def test_another_teacher_on_disk(recovery_recipe: Path, tmp_path: Path, saved: dict[str, Path]) -> None:
    other = tiny.save(tiny.build("olmoe", seed=3), tmp_path / "other")
    result = run(
        recovery_recipe, tmp_path / "run", f"finetune.teacher.model={other}", "finetune.random_plans=0"
    )
    assert result["training"]["teacher"]["model"] == str(other)
    assert result["training"]["teacher"]["keep"] == "disk"
    found = invoke(
        "finetune",
        recovery_recipe,
        "-o",
        tmp_path / "no",
        "--set",
        f"finetune.teacher.model={saved['mixtral']}",
    )
    assert found.exit_code == 1
    assert "another architecture" in found.stderr


@pytest.mark.slow
def test_a_folder_that_was_pruned_elsewhere(
    recovery_recipe: Path, tmp_path: Path, saved: dict[str, Path]
) -> None:
    layout = lay_out(open_checkpoint(saved["olmoe"]))
    plan = uniform_plan(layout.shape.layers, (1, 2, 5, 6))
    export(layout, plan, tmp_path / "pruned")
    found = invoke(
        "finetune",
        recovery_recipe,
        "-o",
        tmp_path / "run",
        "--set",
        f"finetune.checkpoint={tmp_path / 'pruned'}",
    )
    assert found.exit_code == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["plans"][0]["digest"] == plan.digest
    assert not (tmp_path / "run" / "scores.safetensors").exists(), "nothing was ranked"
    assert Plan.read(tmp_path / "run" / "recovered" / "excise_plan.json") == plan
    refused = invoke(
        "prune", recovery_recipe, "-o", tmp_path / "no", "--set", f"finetune.checkpoint={tmp_path / 'pruned'}"
    )
    assert refused.exit_code == 1
    assert "`excise finetune` recovers it" in refused.stderr
    (tmp_path / "pruned" / "excise_plan.json").unlink()
    refused = invoke(
        "finetune",
        recovery_recipe,
        "-o",
        tmp_path / "no",
        "--set",
        f"finetune.checkpoint={tmp_path / 'pruned'}",
    )
    assert refused.exit_code == 1
    assert "no excise_plan.json" in refused.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("finetune=null", "the recipe has no finetune block; it needs at least finetune.data"),
        (
            "finetune.targets=[qkv]",
            (
                "finetune.targets: 'qkv' matches nothing in this model; there is "
                "attention, router, experts, self_attn.q_proj"
            ),
        ),
        ("finetune.data={text: [test.txt]}", "finetune and validation text overlap"),
        ("finetune.batch=64", "finetune: batch × accumulate = 64 windows make a step, but sequences is 32"),
        ("finetune.rnak=4", "unknown key 'finetune.rnak'; did you mean 'rank'?"),
        ("finetune.teacher.topk=4", "unknown key 'finetune.teacher.topk'; did you mean 'top_k'?"),
        ("finetune.random_plans=1", "at least 3 random plans"),
    ],
)
def test_refusals(change: str, message: str, recovery_recipe: Path, tmp_path: Path) -> None:
    found = invoke("finetune", recovery_recipe, "-o", tmp_path / "run", "--set", change)
    assert found.exit_code == 1
    assert message in found.stderr.splitlines()[-1]
    assert not (tmp_path / "run" / "recovered").exists()


# One training.


def job(folder: Path, settings: Training, text: Windows | None = None, seed: int = 0) -> tuple[Job, Any]:
    anatomy = dissect(tiny.build("olmoe"))
    text, held_out = text or windows(24, seed=5), windows(seed=6)
    plan = uniform_plan(anatomy.shape.layers, (0, 2, 5, 6))
    loss: Callable[[], float] = lambda: float(window_losses(anatomy.model, held_out).mean())  # noqa: E731
    made = Job(
        anatomy, dict(plan.counts), text, 2, seed, settings, folder, lambda _, weight: weight, loss, "key", ""
    )
    return made, sharing(anatomy, plan)


def train(folder: Path, **settings: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    wanted = Training(
        **{"steps": 6, "learning_rate": 0.01, "save_steps": 2, "rank": 4, "measure": 3, **settings}
    )
    made, shared = job(folder, wanted)
    with (
        shared as twin,
        recovered(
            made, lambda adapted: SharedTeacher(twin, wanted.temperature, adapted.peft.disable_adapter)
        ) as found,
    ):
        weights = {name: tensor.clone() for name, tensor in found.weights.items()}
    return found.curve, weights


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
def test_interrupted_training_resumes_to_the_same_end(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, weights = train(tmp_path / "whole", accumulate=accumulate)
    original, calls = trainer_module.cross_entropy, []

    def interrupted(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 4 * accumulate:  # in step 4; states are kept after steps 2 and 4
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(trainer_module, "cross_entropy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", accumulate=accumulate)
    assert (tmp_path / "run" / "states" / "checkpoint-2").exists()
    half = tmp_path / "run" / "states" / "checkpoint-3"  # a kill in the middle of a save
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    resumed, again = train(tmp_path / "run", accumulate=accumulate)
    assert len(calls) == (4 + 4) * accumulate, "steps 3 to 6"
    assert [row["step"] for row in resumed] == [row["step"] for row in whole] == [0, 2, 4, 6]
    assert [row["held_out"] for row in resumed] == pytest.approx([row["held_out"] for row in whole], abs=1e-6)
    assert all(torch.allclose(again[name], weights[name], atol=1e-6) for name in weights)
    steps = [read_rows(tmp_path / name / "training.csv") for name in ("whole", "run")]
    assert [[row["step"] for row in found] for found in steps] == [[1, 2, 3, 4, 5, 6]] * 2
    assert [row["loss"] for row in steps[1]] == pytest.approx([row["loss"] for row in steps[0]], abs=1e-6)


def test_a_finished_adapter_is_not_trained_again_and_another_training_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, weights = train(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(recover_module, "_train", None)
        _, again = train(tmp_path)
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    (tmp_path / "key").write_text("another")
    _, anew = train(tmp_path)
    assert all(torch.equal(anew[name], weights[name]) for name in weights)


def test_accumulated_batches_are_one_larger_batch(tmp_path: Path) -> None:
    """Two steps of two batches of 2 windows, or of one batch of 4: the same windows, the same mean."""
    small, large = (
        Training(steps=2, accumulate=2, kl=0, rank=2, learning_rate=0.01),
        Training(steps=2, kl=0, rank=2, learning_rate=0.01),
    )
    found = []
    for number, (settings, batch) in enumerate(((small, 2), (large, 4))):
        made, shared = job(tmp_path / str(number), settings)
        object.__setattr__(made, "batch", batch)
        with shared, recovered(made, lambda _: None) as done:
            found.append({name: tensor.clone() for name, tensor in done.weights.items()})
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])


@pytest.mark.slow
@pytest.mark.parametrize("option", ["gradient_checkpointing", "bf16"])
def test_options_of_the_training(option: str, tmp_path: Path) -> None:
    """Checkpointed activations change nothing; bfloat16 a little."""
    _, plain = train(tmp_path / "plain")
    _, other = train(tmp_path / option, **{option: True})
    gap = max(float((plain[name] - other[name]).abs().max()) for name in plain)
    assert gap < (1e-5 if option == "gradient_checkpointing" else 0.05)
    assert (gap > 0) == (option == "bf16") or gap < 1e-5


@pytest.mark.slow
def test_the_loss_goes_down_and_only_the_gap_is_learned(tmp_path: Path) -> None:
    train(tmp_path, steps=40, ce=0.0)
    log = read_rows(tmp_path / "training.csv")
    assert np.mean([row["kl"] for row in log[-5:]]) < 0.7 * np.mean([row["kl"] for row in log[:5]])
    assert all(row["loss"] == pytest.approx(row["kl"], abs=1e-6) for row in log), "ce has weight 0"
    assert log[0]["learning_rate"] < 0.01 > log[-1]["learning_rate"]


def test_a_loss_that_is_not_finite_keeps_the_last_good_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen, calls = trainer_module.cross_entropy, [], []

    def broken(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return original(logits, tokens) * (torch.nan if len(calls) == 4 else 1.0)

    class Spy(trainer_module.RecoveryTrainer):
        def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
            seen.append({name: parameter.detach().clone() for name, parameter in self.tuned.items()})
            return super().training_step(*arguments, **options)

    monkeypatch.setattr(trainer_module, "cross_entropy", broken)
    monkeypatch.setattr(recover_module, "RecoveryTrainer", Spy)
    with pytest.raises(
        ExciseError,
        match=(
            r"the loss is nan at step 4; the last good adapter is kept in "
            r".*last_good_adapter; lower finetune.learning_rate"
        ),
    ):
        train(tmp_path)
    kept = load_file(tmp_path / "last_good_adapter" / "adapter_model.safetensors")
    assert len(kept) == len(seen[2])
    for name, tensor in kept.items():
        assert torch.equal(tensor, seen[2][name.replace(".weight", ".default.weight")]), (
            "as it was when step 3 was finite"
        )
    assert not (tmp_path / "adapter").exists(), "it is not finished"


def test_a_row_that_a_kill_left_half_written_is_no_row(tmp_path: Path) -> None:
    """Its last number may still be one: 6.4 of 6.4512."""
    whole = "step,tokens,seconds,held_out\r\n0,0,0.1,6.5\r\n2,512,1.5,6.4512\r\n"
    for cut in range(len(whole) - len("2,512,1.5,6.4512\r\n"), len(whole) - 1):
        (tmp_path / "curve.csv").write_bytes(whole[:cut].encode())
        assert [row["step"] for row in read_rows(tmp_path / "curve.csv")] == [0.0], whole[:cut]
    (tmp_path / "curve.csv").write_bytes(whole.encode())
    assert [row["held_out"] for row in read_rows(tmp_path / "curve.csv")] == [6.5, 6.4512]


def test_without_a_good_adapter_none_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the fresh one nor a state that an interruption left is good before a loss under it
    was finite.
    """
    with monkeypatch.context() as broken:
        broken.setattr(trainer_module, "cross_entropy", lambda *_: torch.tensor(torch.nan))
        with pytest.raises(
            ExciseError, match=r"the loss is nan at step 1; it was never finite .* so no adapter is kept"
        ):
            train(tmp_path / "fresh")
    assert not (tmp_path / "fresh" / "last_good_adapter").exists()
    original, calls = trainer_module.cross_entropy, []

    def interrupted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments) * (torch.nan if len(calls) > 4 else 1.0)

    monkeypatch.setattr(trainer_module, "cross_entropy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    with pytest.raises(ExciseError, match=r"the loss is nan at step 3; it was never finite"):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "last_good_adapter").exists()


def test_the_last_good_adapter_costs_no_new_memory_and_no_transfer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device of the adapter, in the same place at every step."""
    places: list[dict[str, tuple[torch.device, int]]] = []

    class Spy(trainer_module.RecoveryTrainer):
        def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
            loss = super().training_step(*arguments, **options)
            assert all(torch.equal(self.good[name], parameter) for name, parameter in self.tuned.items())
            places.append({name: (tensor.device, tensor.data_ptr()) for name, tensor in self.good.items()})
            assert all(self.good[name].device == parameter.device for name, parameter in self.tuned.items())
            return loss

    monkeypatch.setattr(recover_module, "RecoveryTrainer", Spy)
    train(tmp_path)
    assert len(places) == 6
    assert all(place == places[0] for place in places)


def test_a_gradient_that_is_not_finite_never_reaches_a_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer_module.cross_entropy

    def exploding(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        loss = original(logits, tokens)
        return loss + (loss - loss.detach()).abs().sqrt() * 1.0  # √0: finite, with an infinite slope

    monkeypatch.setattr(trainer_module, "cross_entropy", exploding)
    with pytest.raises(ExciseError, match="a gradient is not finite at step 1"):
        train(tmp_path)
    kept = load_file(tmp_path / "last_good_adapter" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_out_of_memory_names_the_settings_that_lower_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("tried to allocate 7 GiB")

    monkeypatch.setattr(trainer_module, "cross_entropy", full)
    with pytest.raises(
        ExciseError,
        match=(
            r"out of memory during recovery \(tried to allocate 7 GiB\): lower "
            r"finetune\.batch .*gradient_checkpointing=true"
        ),
    ):
        train(tmp_path)


# Guards.


def test_a_weight_that_moved_is_found(tmp_path: Path) -> None:
    made, shared = job(tmp_path, Training())
    with shared:
        before = checksums(made.anatomy.model)
        weight = made.anatomy.model.get_parameter("model.layers.1.self_attn.q_proj.weight")
        with torch.no_grad():
            weight[3, 4] += 1e-6
        after = checksums(made.anatomy.model)
        check_moved(before, after, {"model.layers.1.self_attn.q_proj.weight"})
        with pytest.raises(
            ExciseError,
            match=(
                r"recovery moved model\.layers\.1\.self_attn\.q_proj\.weight, "
                r"which finetune.targets does not name"
            ),
        ):
            check_moved(before, after, set())


def test_experts_that_came_back_are_found(tmp_path: Path) -> None:
    made, shared = job(tmp_path, Training())
    with pytest.raises(
        ExciseError,
        match=r"the layers hold \{0: 8, 1: 8, 2: 8\} experts, the plan keeps \{0: 4, 1: 4, 2: 4\}",
    ):
        check_counts(made.anatomy, made.counts)
    with shared:
        check_counts(made.anatomy, made.counts)


@pytest.mark.slow
def test_random_plans_of_the_control_are_those_of_the_validation(
    recovery_recipe: Path, tmp_path: Path
) -> None:
    """The first of the same draw: what they cost before recovery was measured there."""
    result = run(recovery_recipe, tmp_path / "run")
    validation = json.loads((tmp_path / "run" / "validation.json").read_text())["plans"][0]["random"]
    assert [one["digest"] for one in result["plans"][1:]] == validation["digests"][:3]
    assert [one["measures"][0]["before"] for one in result["plans"][1:]] == pytest.approx(
        validation["values"][:3], abs=1e-12
    )
