"""The smallest thing that every command runs on: a tiny model, texts, a task and recipes, in a second or
less.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

from experts.plan import Plan
from tests.support import tiny
from tests.support.tasks import task_file
from tests.support.texts import DOCUMENTS, write_words


class Play:
    """A tiny model with what every command needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tiny.save(tiny.build("olmoe"), folder / "model")
        weights = folder / "model" / "model.safetensors"
        save_file(
            {**load_file(weights), "model.unknown.weight": torch.zeros(3)}, weights, {"format": "pt"}
        )  # reported by transformers
        rng = np.random.default_rng(0)
        for name in ("calibration", "test", "train"):
            write_words(folder / f"{name}.txt", 120, rng, document=20)
        task_file(folder / "tasks")
        text = {"separator": DOCUMENTS}
        part = {"sequences": 2, "length": 24}
        recipe: dict[str, Any] = {
            "model": str(folder / "model"),
            "dtype": "float32",
            "calibration": {"data": {"text": ["calibration.txt"], **text}, **part},
            "criteria": ["reap"],
            "prune": {"fraction": 0.5},
            "validate": {"data": {"text": ["test.txt"], **text}, **part},
        }
        self.write("prune", recipe)
        self.write("dataset", recipe, calibration={"data": {"dataset": "owner/name"}, **part})
        self.write(
            "tasks",
            recipe,
            validate={**recipe["validate"], "tasks": {"names": ["guess"], "include": "tasks"}},
        )
        training = {"steps": 1, "batch": 2, "random_plans": 0, "save_steps": 1, "rank": 1}
        self.write("finetune", recipe, finetune={"data": {"text": ["train.txt"]}, **part, **training})
        disk = {"keep": "disk", "top_k": 4}
        self.write(
            "disk", recipe, finetune={"data": {"text": ["train.txt"]}, **part, **training, "teacher": disk}
        )
        plan = Plan(8, dict.fromkeys((0, 1, 2), (0, 2, 3, 5)))
        (folder / "plan.json").write_text(json.dumps(plan.to_json()))

    def write(self, name: str, recipe: dict[str, Any], **changes: Any) -> None:
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe | changes))

    def command(self, name: str, out: Path) -> list[str]:
        model = str(self.folder / "model")
        if name == "inspect":
            return [name, model]
        if name == "export":
            return [name, model, str(self.folder / "plan.json"), str(out / "checkpoint"), "--quiet"]
        if name.startswith("effects"):
            text = [
                "--text",
                str(self.folder / "test.txt"),
                "--window",
                "12",
                "--sequences",
                "1",
                "--layers",
                "0",
            ]
            return ["effects", model, *text, "-o", str(out / name), "--quiet"]
        verb = "finetune" if name in ("finetune", "disk") else "prune"
        return [verb, str(self.folder / f"{name}.yaml"), "-o", str(out), "--quiet"]
