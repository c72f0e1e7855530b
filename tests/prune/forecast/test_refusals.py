"""`--dry-run` refuses what the run would refuse, in the same words, and loads no weights for it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from experts import load_anatomy, loading
from prune.console.cli import app
from prune.recipe.read import read_recipe
from prune.run.pipeline import Run
from prune.session.prepare import prepare
from tests.support import talking, tiny
from tests.support.quantised import to_mxfp4
from tests.support.recipes import write_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """For a tiny gpt-oss in MXFP4."""
    folder = tmp_path / "model"
    tiny.save(tiny.build("gpt_oss", hidden_size=64, intermediate_size=32, head_dim=16), folder)
    to_mxfp4(folder)
    return write_recipe(tmp_path, folder)


def dry(recipe: Path, *overrides: str, command: str = "prune") -> Result:
    given = [part for assignment in overrides for part in ("--set", assignment)]
    return CliRunner().invoke(app, [command, str(recipe), "--dry-run", "--json", *given])


def refused(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> str:
    """What the run and --dry-run say, which has to be the same."""
    for place in (loading, load_anatomy):
        monkeypatch.setattr(place, "load_network", None)
    said = dry(recipe, *overrides)
    assert said.exit_code == 1, said.output
    with pytest.raises(Exception, match=r".") as error:
        Run(prepare(read_recipe(recipe, overrides), tmp_path / "run")).execute()
    assert str(error.value) in said.stderr
    return str(error.value)


QUANTISED: dict[str, tuple[list[str], str]] = {
    "not asked for": (["refit={}"], "stored quantised (mxfp4, U8), which takes no changed numbers"),
    "another precision": (["refit.dequantise=true"], "would compute in float32"),
    "a size": (
        ["refit.dequantise=true", "dtype=auto", "prune={target_size: 190kB}"],
        "prune.target_size counts experts as they are stored",
    ),
    "a recovery": (
        ["refit.dequantise=true", "dtype=auto", "finetune.data.text=[calibration.txt]"],
        "recovery (finetune) does not begin from dequantised experts",
    ),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_source(name: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides, message = QUANTISED[name]
    assert message in refused(recipe, tmp_path, monkeypatch, *overrides)


def test_settings_beside_config_json(recipe: Path, tmp_path: Path) -> None:
    """They would still say that the experts are quantised."""
    (tmp_path / "model" / "hf_quant_config.json").write_text("{}")
    with pytest.raises(Exception, match=r"hf_quant_config.json: says how weights are quantised"):
        prepare(read_recipe(recipe, ["refit.dequantise=true", "dtype=auto"]), tmp_path / "run")


def test_a_refit_that_is_left_out(recipe: Path, tmp_path: Path) -> None:
    said = dry(recipe, "refit.if_possible=true")
    assert said.exit_code == 0, said.output
    assert "pruned without a refit (refit.if_possible): refit: model.layers.0" in said.stderr
    forecast = json.loads(said.stdout)
    assert "refit" not in [stage["stage"] for stage in forecast["stages"]]
    assert prepare(read_recipe(recipe, ["refit.if_possible=true"]), tmp_path / "run").recipe.refit is None


def test_one_that_is_dequantised_is_forecast(recipe: Path) -> None:
    """The checkpoint is larger than without, and refitted weights lie beside it."""
    plain, said = (
        json.loads(dry(recipe, "dtype=bfloat16", *more).stdout) for more in ((), ("refit.dequantise=true",))
    )
    matrices = 3 * 4 * (64 * 64 + 32 * 64)  # layers × kept experts × numbers
    quantised = matrices // 2 + matrices // 32
    assert said["disk"]["checkpoint"] - plain["disk"]["checkpoint"] == 2 * matrices - quantised
    assert plain["disk"]["refit"] == 0
    assert said["disk"]["refit"] == 2 * matrices + 2 * matrices // 3


TEXTS: dict[str, tuple[list[str], str]] = {
    "one window": (["refit.text.data.text=[calibration.txt]", "refit.text.sequences=1"], "text has 1 window"),
    "one window to calibrate on": (["refit={}", "calibration.sequences=1"], "raise calibration.sequences"),
    "too few words": (
        ["refit.text.data.text=[calibration.txt]"],
        "refit.text: data",
    ),
    "text of the test": (
        ["refit.text.data.text=[test.txt]", "refit.text.sequences=8"],
        "refit and validation text overlap",
    ),
    "a chat to calibrate on": (
        ["calibration.data={sampled: {start: chat}}"],
        "sampled: start: chat, but the tokenizer has no chat template",
    ),
    "a chat to refit on": (
        ["refit.text.data={sampled: {start: chat}}"],
        "sampled: start: chat, but the tokenizer has no chat template",
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str, recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides, message = TEXTS[name]
    assert message in refused(recipe_path, tmp_path, monkeypatch, *overrides)


@pytest.mark.parametrize("command", ["compare", "audit"])
def test_texts_of_other_commands(command: str, recipe_path: Path) -> None:
    """An audit makes no refit, so its text is not asked for; it calibrates as all do."""
    text = "refit.text.data.text=[calibration.txt]", "validate.chance=normal"
    short = dry(recipe_path, *text, command=command)
    assert (short.exit_code, "refit.text: data" in short.stderr) == (
        (1, True) if command == "compare" else (0, False)
    )
    sampled = "calibration.data={sampled: {start: chat}}", "validate.chance=normal"
    chat = dry(recipe_path, *sampled, command=command)
    assert (chat.exit_code, "no chat template" in chat.stderr) == (1, True)


def test_a_tokenizer_that_has_a_template(recipe_path: Path, tmp_path: Path) -> None:
    model: Any = tiny.save(tiny.build("olmoe"), tmp_path / "model")
    talking.tokenizer(talking.FREE).save_pretrained(model)
    said = dry(recipe_path, f"model={model}", "calibration.data={sampled: {start: chat}}")
    assert said.exit_code == 0, said.output
