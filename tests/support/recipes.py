"""Recipes on tiny models and random words, and how tests run them."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from typer.testing import CliRunner

from prune.console.cli import app
from prune.recipe.read import read_recipe
from prune.run.pipeline import Run
from prune.session.prepare import prepare
from tests.support.texts import DOCUMENTS, write_words

TRAINING = {
    "sequences": 32,
    "length": 64,
    "batch": 4,
    "steps": 4,
    "learning_rate": 0.01,
    "rank": 4,
    "measure": 2,
    "save_steps": 2,
}


def write_recipe(folder: Path, model: Path) -> Path:
    """Half the experts of a model, by reap and at random, on random words beside the recipe."""
    rng = np.random.default_rng(0)
    for name in ("calibration", "test"):
        write_words(folder / f"{name}.txt", 900, rng)
    recipe = {
        "model": str(model),
        "dtype": "float32",
        "calibration": {"data": _text("calibration.txt"), "sequences": 8, "length": 64},
        "criteria": ["reap", "random"],
        "prune": {"fraction": 0.5},
        "validate": {"data": _text("test.txt"), "sequences": 8, "length": 64},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def add_training(path: Path) -> Path:
    """The same recipe by reap alone, with a training of four steps on other words."""
    write_words(path.parent / "train.txt", 1200, np.random.default_rng(7))
    recipe = yaml.safe_load(path.read_text())
    recipe |= {"criteria": ["reap"], "finetune": {"data": _text("train.txt"), **TRAINING}}
    path.write_text(yaml.safe_dump(recipe))
    return path


def _text(name: str) -> dict[str, Any]:
    return {"text": [name], "separator": DOCUMENTS}


def execute(path: Path, out: Path, *overrides: str, force: bool = False) -> dict[str, Any]:
    return Run(prepare(read_recipe(path, overrides), out, force)).execute().result


def invoke(*arguments: object) -> Any:
    """The command line, as a machine calls it."""
    return CliRunner().invoke(app, [*map(str, arguments), "--quiet", "--json"])
