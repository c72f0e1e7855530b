"""Recipes on tiny models and random words, and how tests run them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from prune.console.cli import app
from prune.recipe.read import read_recipe
from prune.run.pipeline import Run
from prune.session.prepare import prepare

DOCUMENTS = r"(?<=\n)\n"  # separator of the texts below


def write_words(path: Path, count: int, rng: np.random.Generator) -> None:
    """Random words of six letters, ninety a document."""
    words = ["".join(chr(97 + i) for i in rng.integers(0, 26, 6)) for _ in range(count)]
    path.write_text("\n\n".join(" ".join(words[i : i + 90]) for i in range(0, count, 90)))


@pytest.fixture
def recipe_path(saved: dict[str, Path], tmp_path: Path) -> Path:
    """Half the experts of a tiny OLMoE, by reap and at random."""
    rng = np.random.default_rng(0)
    for name in ("calibration", "test"):
        write_words(tmp_path / f"{name}.txt", 900, rng)
    recipe = {
        "model": str(saved["olmoe"]),
        "dtype": "float32",
        "calibration": {"data": _text("calibration.txt"), "sequences": 8, "length": 64},
        "criteria": ["reap", "random"],
        "prune": {"fraction": 0.5},
        "validate": {"data": _text("test.txt"), "sequences": 8, "length": 64},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def recovery_recipe(recipe_path: Path, tmp_path: Path) -> Path:
    """The same, with a training of four steps on other text."""
    write_words(tmp_path / "train.txt", 1200, np.random.default_rng(7))
    recipe = yaml.safe_load(recipe_path.read_text())
    recipe["finetune"] = {
        "data": _text("train.txt"),
        "sequences": 32,
        "length": 64,
        "batch": 4,
        "steps": 4,
        "learning_rate": 0.01,
        "rank": 4,
        "measure": 2,
        "save_steps": 2,
    }
    recipe["criteria"] = ["reap"]
    recipe_path.write_text(yaml.safe_dump(recipe))
    return recipe_path


def _text(name: str) -> dict[str, Any]:
    return {"text": [name], "separator": DOCUMENTS}


def execute(path: Path, out: Path, *overrides: str, force: bool = False) -> dict[str, Any]:
    return Run(prepare(read_recipe(path, overrides), out, force)).execute().result


def invoke(*arguments: object) -> Any:
    """The command line, as a machine calls it."""
    return CliRunner().invoke(app, [*map(str, arguments), "--quiet", "--json"])
