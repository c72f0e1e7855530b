"""The whole run on a small model: files, cache, resume after Ctrl-C at any stage, refusals before the model
is loaded.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from criteria import calibration as calibration_module
from criteria import observe as observe_module
from criteria.text import for_model
from experts import load_anatomy
from experts.errors import ExciseError
from experts.plan import Plan
from prune.console.cli import app
from prune.recipe.read import read_recipe
from prune.recipe.schema import Recipe
from prune.run import pipeline as run_module
from prune.run import pruned_folder
from prune.session.prepare import prepare
from tests.support.counting import counted
from tests.support.recipes import execute
from validate import chance

FILES = (
    "recipe.yaml",
    "environment.json",
    "scores.safetensors",
    "plan.json",
    "losses.csv",
    "validation.json",
    "report.md",
    "checkpoint",
)


def test_a_run_and_what_it_leaves(recipe_path: Path, tmp_path: Path, saved: dict[str, Path]) -> None:
    out = tmp_path / "run"
    result = execute(recipe_path, out)
    assert all((out / name).exists() for name in FILES)
    assert not list(out.glob("*.new")) + list(out.glob("*partial*"))
    written = json.loads((out / "validation.json").read_text())
    first = written["plans"][0]
    assert {
        "criterion",
        "fraction",
        "kept",
        "delta",
        "reversed_delta",
        "random",
        "p",
        "interval",
        "verdict",
    } <= first.keys()
    assert (first["criterion"], first["fraction"], first["kept"]) == ("reap", 0.5, 12)
    assert len(first["random"]["values"]) == 20
    assert first["random"]["mean"] == pytest.approx(np.mean(first["random"]["values"]))
    assert load_file(out / "scores.safetensors")["reap"].shape == (3, 8)
    card = (out / "checkpoint" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["tags"] == ["moe", "pruned", "excise"]
    assert "base_model" not in front, "a local folder is no name on the hub"
    for text in (card, (out / "report.md").read_text()):
        assert first["verdict"] in text
        assert "mean g·‖f‖" in text
    model = AutoModelForCausalLM.from_pretrained(result["checkpoint"], dtype=torch.float32)
    assert model.config.num_experts == 4


def test_same_recipe_same_numbers(recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = execute(recipe_path, tmp_path / "one")
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "other-cache"))
    second = execute(recipe_path, tmp_path / "two")
    places = ("run", "checkpoint")
    assert {k: v for k, v in first.items() if k not in places} == {
        k: v for k, v in second.items() if k not in places
    }


def test_second_run_loads_no_model(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = execute(recipe_path, tmp_path / "run")
    calls = counted(monkeypatch)
    assert execute(recipe_path, tmp_path / "run") == first
    assert calls == {"load": 0, "observe": 0, "check_rig": 0, "export": 0}


def test_other_fraction_reuses_the_calibration(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(recipe_path, tmp_path / "run")
    calls = counted(monkeypatch)
    result = execute(recipe_path, tmp_path / "quarter", "prune.fraction=0.25")
    assert result["plans"][0]["fraction"] == 0.25
    assert calls["observe"] == 0
    assert calls["export"] == 1


@pytest.mark.slow
def test_more_random_plans_reuse_rows_and_checkpoint(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(recipe_path, tmp_path / "run")
    calls = counted(monkeypatch)
    before = len((tmp_path / "run" / "losses.csv").read_text().splitlines())
    result = execute(recipe_path, tmp_path / "run", "validate.random_plans=25")
    assert len(result["plans"][0]["random"]["values"]) == 25
    assert calls["export"] == 0
    assert len((tmp_path / "run" / "losses.csv").read_text().splitlines()) == before + 5 * 8


def test_global_scope_shows_both_and_reloads(recipe_path: Path, tmp_path: Path) -> None:
    result = execute(
        recipe_path, tmp_path / "run", "prune.scope=global", "prune.fraction=0.4", "criteria=[reap_sum]"
    )
    assert [(plan["criterion"], plan["scope"]) for plan in result["plans"]] == [
        ("reap_sum", "global"),
        ("reap_sum", "layer"),
    ]
    counts = result["plans"][0]["kept_per_layer"]
    assert len(set(counts.values())) > 1
    assert sum(counts.values()) == 24 - 10
    assert (Path(result["checkpoint"]) / "modeling_excise.py").exists()
    model = AutoModelForCausalLM.from_pretrained(result["checkpoint"], trust_remote_code=True)
    assert [len(layer.mlp.experts.down_proj) for layer in model.model.layers] == list(counts.values())


def test_target_size(recipe_path: Path, tmp_path: Path, saved: dict[str, Path]) -> None:
    size = (saved["olmoe"] / "model.safetensors").stat().st_size
    result = execute(recipe_path, tmp_path / "run", f"prune.target_size={int(size * 0.8)}", "criteria=[reap]")
    kept = result["plans"][0]["kept"] // 3
    assert result["size"]["before"] - result["size"]["removed"] <= size * 0.8
    one_more = result["size"]["removed"] // (8 - kept)
    assert result["size"]["before"] - result["size"]["removed"] + one_more > size * 0.8


def test_target_size_is_kept_where_layers_weigh_differently(
    recipe_path: Path, tmp_path: Path, saved: dict[str, Path]
) -> None:
    """One layer is stored in float32, the others in float16, and the scores keep the heavy one: still below
    the size that was asked for.
    """
    odd = shutil.copytree(saved["olmoe"], tmp_path / "odd")
    weights = load_file(odd / "model.safetensors")
    light = {
        name: array.astype(np.float16) if ".experts." in name and "layers.2." not in name else array
        for name, array in weights.items()
    }
    save_file(light, odd / "model.safetensors", {"format": "pt"})
    (tmp_path / "heavy.py").write_text(
        "import numpy as np\ndef last(s):\n    return s.count * 0 + np.arange(len(s.count))[:, None]\n"
    )
    size, target = sum(array.nbytes for array in light.values()), 0.8
    sets = [
        f"model={odd}",
        f"prune.target_size={int(size * target)}",
        "prune.scope=global",
        f"criteria=[{tmp_path}/heavy.py:last]",
    ]
    result = execute(recipe_path, tmp_path / "run", *sets, "prune.protect_super_experts=false")
    counts = result["plans"][0]["kept_per_layer"]
    assert counts["2"] > counts["0"]
    written = sum(
        array.nbytes for array in load_file(Path(result["checkpoint"]) / "model.safetensors").values()
    )
    assert written == result["plans"][0]["size"] <= size * target
    assert [plan["size"] for plan in result["plans"]][1] != written, "scope layer has a size of its own"


@pytest.mark.parametrize(
    "stage",
    [
        "load_network",
        "read_windows",
        "observe",
        "score",
        "check_rig",
        "evidence_of",
        "export",
        "check_reloaded",
        "markdown",
    ],
)
def test_ctrl_c_at_any_stage_then_resume(
    stage: str, recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        places = (load_anatomy, for_model, calibration_module, run_module, chance, pruned_folder)
        broken.setattr(next(module for module in places if hasattr(module, stage)), stage, interrupt)
        done = CliRunner().invoke(app, ["prune", str(recipe_path), "-o", str(tmp_path / "run"), "--quiet"])
        assert done.exit_code == 1
        assert done.stderr.endswith("excise: interrupted; the same command resumes from what was finished\n")
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    checkpoint = tmp_path / "run" / "checkpoint"
    assert checkpoint.exists() == (stage == "markdown")
    execute(recipe_path, tmp_path / "run")
    assert checkpoint.exists()


def test_interrupted_calibration_resumes_in_the_middle(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("criteria.observe.KEEP_EVERY", 0.0)
    whole = execute(recipe_path, tmp_path / "whole", "calibration.batch=2")
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "fresh"))
    collect, calls = observe_module.collected, []

    def third_time(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return collect(*args)

    with monkeypatch.context() as broken:
        broken.setattr("criteria.observe.collected", third_time)
        with pytest.raises(KeyboardInterrupt):
            execute(recipe_path, tmp_path / "run", "calibration.batch=2")
    assert (tmp_path / "run" / "calibration.partial.safetensors").exists()
    starts = []
    observe = calibration_module.observe
    monkeypatch.setattr(
        calibration_module, "observe", lambda *args: (starts.append(args[3].tokens.sum()), observe(*args))[1]
    )
    result = execute(recipe_path, tmp_path / "run", "calibration.batch=2")
    assert starts == [4 * 64]
    assert result["plans"][0]["delta"] == whole["plans"][0]["delta"]
    assert not (tmp_path / "run" / "calibration.partial.safetensors").exists()


def test_stop_on(recipe_path: Path, tmp_path: Path) -> None:
    """The recipe's threshold: exit 3, the evidence is kept, no checkpoint is written."""
    arguments = ["prune", str(recipe_path), "-o", str(tmp_path / "run"), "--quiet", "--json"]
    stop = ["--set", "criteria=[random]", "--set", "validate.stop_on=not distinguishable"]
    done = CliRunner().invoke(app, [*arguments, *stop])
    assert done.exit_code == 3, done.stderr
    assert json.loads(done.stdout)["checkpoint"] is None
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert (tmp_path / "run" / "report.md").exists()


# Refused before anything expensive.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["criteria=[raep]"], "did you mean reap"),
        (["prune.fraction=1.2"], "between 0 and 1"),
        (["prune.keep=2"], "top_k = 3; keep at least 3"),
        (["prune.target_size=1kB"], "with the fewest experts that can route"),
        (["prune.target_size=1GB"], "nothing to prune"),
        (["model=./nowhere"], "no such model folder"),
    ],
)
def test_refused_before_the_model_is_loaded(
    overrides: list[str], message: str, recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    with pytest.raises(ExciseError, match=message):
        execute(recipe_path, tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()
    assert sum(calls.values()) == 0


@pytest.mark.slow
def test_a_note_is_told_once(recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known before the work is said before it, and not again with what is known after it; machines
    find all of it.
    """
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    for scope in ("layer", "global"):
        options = ["--set", f"prune.scope={scope}", "--set", "criteria=[reap_sum]", "--json"]
        done = CliRunner().invoke(app, ["prune", str(recipe_path), "-o", str(tmp_path / scope), *options])
        assert done.exit_code == 0, done.output
        notes = json.loads(done.stdout)["notes"]
        assert any("not a multiple of 8" in note for note in notes)
        assert any("protect_super_experts: auto protects none of 24 experts" in note for note in notes)
        assert [done.stderr.count(f"note: {note}\n") for note in notes] == [1] * len(notes)
    again = CliRunner().invoke(
        app, ["prune", str(recipe_path), "-o", str(tmp_path / "layer"), "--set", "criteria=[reap_sum]"]
    )
    assert again.stderr.count("not a multiple of 8") == 1, "in another run it is told again"


@pytest.mark.parametrize(("setting", "protected"), [("auto", 0), ("true", 1), ("false", 0)])
def test_super_experts_of_a_small_model(
    setting: str, protected: int, recipe_path: Path, tmp_path: Path
) -> None:
    """24 experts: the rule would take the largest, outlier or not; only who asks for it gets it."""
    result = execute(
        recipe_path, tmp_path / "run", f"prune.protect_super_experts={setting}", "criteria=[reap]"
    )
    assert result["protected"] == protected
    assert any("auto protects none" in note for note in result["notes"]) == (setting == "auto")


def test_super_experts_need_yes_no_or_auto(recipe_path: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ExciseError, match=r"prune\.protect_super_experts: input should be 'auto', True or False, got 'often'"
    ):
        execute(recipe_path, tmp_path / "run", "prune.protect_super_experts=often")


def test_the_reverse_is_that_of_these_scores(recipe_path: Path, tmp_path: Path) -> None:
    """A function that gives other numbers every time: its reverse keeps exactly what the tested
    plan removes.
    """
    (tmp_path / "dice.py").write_text(
        "import numpy as np\ndef throw(s):\n    return np.random.default_rng().random(s.count.shape)\n"
    )
    execute(recipe_path, tmp_path / "run", f"criteria=['{tmp_path}/dice.py:throw']")
    plan = Plan.read(tmp_path / "run" / "plan.json")
    mirrored = Plan(8, {layer: tuple(sorted(set(range(8)) - set(ids))) for layer, ids in plan.kept.items()})
    assert (
        json.loads((tmp_path / "run" / "validation.json").read_text())["plans"][0]["reversed_digest"]
        == mirrored.digest
    )


def test_the_other_scope_is_left_out_where_it_cannot_be(
    recipe_path: Path, tmp_path: Path, saved: dict[str, Path]
) -> None:
    """Ten of 16 stay in two router groups; five in each of two layers cannot be shared by them, and nobody
    asked for that.
    """
    sets = (
        f"model={saved['deepseek_v3']}",
        "prune.fraction=0.4",
        "prune.scope=global",
        "criteria=[reap_sum]",
    )
    result = execute(recipe_path, tmp_path / "run", *sets)
    assert [(plan["scope"], plan["kept"]) for plan in result["plans"]] == [("global", 10)]


def test_uneven_groups_are_refused(recipe_path: Path, tmp_path: Path, saved: dict[str, Path]) -> None:
    with pytest.raises(
        ExciseError, match="keeps 5 experts per layer, which 2 router groups cannot share evenly"
    ):
        execute(recipe_path, tmp_path / "run", f"model={saved['deepseek_v3']}", "prune.keep=5")


def test_overlapping_text_is_refused(recipe_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="calibration and validation text overlap"):
        execute(recipe_path, tmp_path / "run", "validate.data={text: [calibration.txt]}")


def test_a_folder_that_is_no_run_is_not_touched(recipe_path: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("x")
    with pytest.raises(ExciseError, match="mine: exists and is not a run of Excise"):
        execute(recipe_path, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious.txt"]


def test_a_checkpoint_of_another_recipe_is_not_replaced(recipe_path: Path, tmp_path: Path) -> None:
    execute(recipe_path, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint" / "model.safetensors").read_bytes()
    with pytest.raises(
        ExciseError, match=r"holds a checkpoint made with prune: .*0\.5.*, now .*0\.25.*--force"
    ):
        execute(recipe_path, tmp_path / "run", "prune.fraction=0.25")
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").read_bytes() == before
    execute(recipe_path, tmp_path / "run", "prune.fraction=0.25", force=True)
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").read_bytes() != before


def test_recipe_is_kept_resolved(recipe_path: Path, tmp_path: Path) -> None:
    execute(recipe_path, tmp_path / "run", "calibration.seed=3")
    kept = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert Recipe.model_validate(kept) == read_recipe(recipe_path, ["calibration.seed=3"])


def test_killed_between_export_and_its_check(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that is whole but not recorded (SIGKILL) is checked, not refused and not written again."""
    execute(recipe_path, tmp_path / "run")
    stages = tmp_path / "run" / "stages.json"
    stages.write_text(
        json.dumps({name: key for name, key in json.loads(stages.read_text()).items() if name != "export"})
    )
    calls = counted(monkeypatch)
    execute(recipe_path, tmp_path / "run")
    assert calls["export"] == 0
    assert "export" in json.loads(stages.read_text())


def test_other_first_criterion_does_not_replace_a_checkpoint(recipe_path: Path, tmp_path: Path) -> None:
    execute(recipe_path, tmp_path / "run")
    with pytest.raises(ExciseError, match=r"made with criteria: \['reap'\], now \['utilization'\]"):
        execute(recipe_path, tmp_path / "run", "criteria=[utilization, reap]")
    execute(recipe_path, tmp_path / "run", "criteria=[reap, utilization]")


def test_a_single_document_gives_nan_intervals_and_valid_json(recipe_path: Path, tmp_path: Path) -> None:
    result = execute(
        recipe_path, tmp_path / "run", f"validate.data={{text: [{tmp_path}/test.txt]}}", "criteria=[reap]"
    )
    plan = result["plans"][0]
    assert plan["interval"] == [None, None]
    assert "one document only" in plan["interval_note"]
    assert plan["verdict"] == "not distinguishable"
    assert "NaN" not in (tmp_path / "run" / "validation.json").read_text()
    assert "95 % interval [nan, nan]" in (tmp_path / "run" / "report.md").read_text()


def test_model_without_a_tokenizer(recipe_path: Path, tmp_path: Path, saved: dict[str, Path]) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(saved["olmoe"] / name)
    with pytest.raises(ExciseError, match=r"bare: no tokenizer files"):
        execute(recipe_path, tmp_path / "run", f"model={bare}")


def test_a_data_set_that_cannot_be_reached(recipe_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match=r"data set owner/nope: cannot be read"):
        execute(recipe_path, tmp_path / "run", "calibration.data={dataset: owner/nope}")


def test_two_runs_in_one_folder(recipe_path: Path, tmp_path: Path) -> None:
    first = prepare(read_recipe(recipe_path), tmp_path / "run")
    with first.folder.held(), pytest.raises(ExciseError, match="run: another run is at work in this folder"):
        execute(recipe_path, tmp_path / "run")


def test_broken_weights_are_noticed(recipe_path: Path, tmp_path: Path) -> None:
    from tests.support import tiny

    model = tiny.build("olmoe")
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[2] = float("nan")
    tiny.save(model, tmp_path / "broken")
    with pytest.raises(
        ExciseError,
        match=(
            r"criterion reap: gave nan to expert \d of layer 1, which \d+ tokens "
            r"reached; are the model's weights finite"
        ),
    ):
        execute(recipe_path, tmp_path / "run", f"model={tmp_path / 'broken'}")


def test_an_edited_criterion_is_tested_again(recipe_path: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def score(statistics):\n    return statistics.count\n")
    before = execute(recipe_path, tmp_path / "run", f"criteria=[reap, '{mine}:score']")
    mine.write_text("def score(statistics):\n    return -statistics.count\n")
    after = execute(recipe_path, tmp_path / "run", f"criteria=[reap, '{mine}:score']")
    assert before["plans"][0] == after["plans"][0]
    assert before["plans"][1]["delta"] != after["plans"][1]["delta"]


def test_a_damaged_checkpoint_is_written_again(recipe_path: Path, tmp_path: Path) -> None:
    execute(recipe_path, tmp_path / "run")
    weights = tmp_path / "run" / "checkpoint" / "model.safetensors"
    whole = weights.read_bytes()
    for damage in (lambda: weights.write_bytes(whole[:1000]), weights.unlink):
        damage()
        execute(recipe_path, tmp_path / "run")
        assert weights.read_bytes() == whole


def test_a_refused_text_changes_nothing(recipe_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="No such file"):
        execute(recipe_path, tmp_path / "run", "validate.data={text: nofile.txt}")
    assert not (tmp_path / "run").exists()
    execute(recipe_path, tmp_path / "run")
    before = (tmp_path / "run" / "recipe.yaml").read_text()
    with pytest.raises(ExciseError, match="No such file"):
        execute(recipe_path, tmp_path / "run", "validate.data={text: nofile.txt}")
    assert (tmp_path / "run" / "recipe.yaml").read_text() == before


@pytest.mark.slow
def test_the_kept_recipe_can_be_run_again(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = execute(recipe_path, tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = execute(tmp_path / "run" / "recipe.yaml", tmp_path / "run2")
    assert again["plans"] == first["plans"]


def test_paths_start_from_the_recipe(
    recipe_path: Path, tmp_path: Path, saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").symlink_to(saved["olmoe"])
    (tmp_path / "mine.py").write_text("def score(statistics):\n    return statistics.count\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = execute(
        recipe_path, tmp_path / "run", "model=./m", "criteria=['mine.py:score', 'reversed:mine.py:score']"
    )
    assert result["model"]["name"] == str(tmp_path / "m")


@pytest.mark.parametrize("name", ["stages.json", "recipe.yaml"])
def test_a_damaged_run_folder_is_one_line(name: str, recipe_path: Path, tmp_path: Path) -> None:
    execute(recipe_path, tmp_path / "run")
    (tmp_path / "run" / name).write_text("[")
    with pytest.raises(ExciseError, match=f"{name}: damaged"):
        execute(recipe_path, tmp_path / "run")


def test_one_domain_is_refused_before_the_work(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    with pytest.raises(ExciseError, match="specialization compares domains"):
        execute(recipe_path, tmp_path / "run", "criteria=[specialization]")
    assert sum(calls.values()) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 48},
        {"num_attention_heads": 3},
        {"hidden_size": "a"},
        {"pad_token_id": 999999},
        {"model_type": "nope"},
    ],
)
def test_configurations_that_do_not_fit_are_one_line(
    change: dict[str, Any], recipe_path: Path, tmp_path: Path, saved: dict[str, Path]
) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    for file in saved["olmoe"].iterdir():
        (odd / file.name).symlink_to(file)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").unlink()
    (odd / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ExciseError, match="odd: the (model|tokenizer) cannot be loaded") as caught:
        execute(recipe_path, tmp_path / "run", f"model={odd}")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_some_weights_is_refused(
    recipe_path: Path, tmp_path: Path, saved: dict[str, Path]
) -> None:
    """transformers would fill them with random numbers, with a warning."""
    odd = shutil.copytree(saved["olmoe"], tmp_path / "odd")
    weights = load_file(odd / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"], weights["model.norm.weight"]
    save_file(weights, odd / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ExciseError,
        match=(
            r"odd: .*lacks 2 weights of OlmoeForCausalLM \(first: "
            r"model\.layers\.1\.self_attn\.q_proj\.weight\)"
        ),
    ):
        execute(recipe_path, tmp_path / "run", f"model={odd}")


def test_counts_by_hand_and_multiples(recipe_path: Path, tmp_path: Path) -> None:
    """Of three layers one is pruned, by hand; then counts that divide by 4, with the note that they do not
    divide by 8.
    """
    by_hand = execute(
        recipe_path,
        tmp_path / "hand",
        "prune.keep={1: 5}",
        "criteria=[reap]",
        "prune.protect_super_experts=false",
    )
    assert by_hand["plans"][0]["kept_per_layer"] == {"0": 8, "1": 5, "2": 8}
    assert any("layers keep 5 experts, not a multiple of 8" in note for note in by_hand["notes"])
    model = AutoModelForCausalLM.from_pretrained(by_hand["checkpoint"], trust_remote_code=True)
    assert [len(layer.mlp.experts.down_proj) for layer in model.model.layers] == [8, 5, 8]
    wide = execute(
        recipe_path, tmp_path / "wide", "prune.fraction=0.4", "prune.multiple_of=4", "criteria=[reap]"
    )
    assert wide["plans"][0]["kept_per_layer"] == {"0": 4, "1": 4, "2": 4}
    with pytest.raises(ExciseError, match="counts by hand leaves nothing for scope: global"):
        execute(recipe_path, tmp_path / "no", "prune.keep={1: 5}", "prune.scope=global")


def test_another_model_or_text_in_the_same_place(
    recipe_path: Path, tmp_path: Path, saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with a checkpoint of what was there before is refused before the work; of another text before
    the tests.
    """
    model = shutil.copytree(saved["olmoe"], tmp_path / "model")
    execute(recipe_path, tmp_path / "run", f"model={model}")
    kept = {
        name: (tmp_path / "run" / name).read_bytes()
        for name in ("plan.json", "validation.json", "stages.json")
    }
    calls = counted(monkeypatch)
    weights = load_file(model / "model.safetensors")
    save_file(
        {name: value[..., ::-1].copy() for name, value in weights.items()},
        model / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ExciseError, match="was made of another model .* --force to replace it"):
        execute(recipe_path, tmp_path / "run", f"model={model}")
    assert sum(calls.values()) == 0
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    (tmp_path / "calibration.txt").write_text("0123456789 " * 800)
    with pytest.raises(ExciseError, match="keeps other experts than this run would"):
        execute(recipe_path, tmp_path / "run", f"model={model}")
    assert calls["check_rig"] == calls["export"] == 0
    assert {name: (tmp_path / "run" / name).read_bytes() for name in kept} == kept
