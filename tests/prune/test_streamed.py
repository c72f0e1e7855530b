"""Commands on a checkpoint that is read layer by layer, states waiting on disk: a resident run's files."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from tests.support.recipes import invoke
from tests.support.tasks import task_file

LIMIT = "900kB"  # weights take 0.6 MB at a time; less than the states of all plans is left
OWN = ("recipe.yaml", "environment.json", "stages.json", ".lock")  # name the settings, folders and times
CRITERIA = [
    "reap",
    "gradient",
    "fisher",
    "refit_residual",
    "causal_removal:outcome=kl",
    "causal_greedy:rounds=2,outcome=kl",
    "causal_swaps:shortlist=3,passes=2",
]
SETTINGS: dict[str, dict[str, Any]] = {
    # Scope global is tested in scope layer, too.
    "prune": {"criteria": CRITERIA, "prune": {"fraction": 0.5, "scope": "global"}},
    "compare": {"criteria": ["reap", "random"], "compare": {"fractions": [0.25, 0.5]}},
    "audit": {"criteria": ["reap", "routing_weight"]},
}
CURVES = {"windows": 2, "positions": 8, "max_removed": 2}


@pytest.mark.slow
@pytest.mark.parametrize("command", SETTINGS)
def test_the_same_files(command: str, recipe_path: Path, tmp_path: Path) -> None:
    write(recipe_path, tmp_path, SETTINGS[command])
    found = {}
    for model, limit in (("resident", None), ("streamed", LIMIT)):
        out = tmp_path / model
        memory = json.dumps({"model": model, "limit": limit})
        done = invoke(command, recipe_path, "-o", out, "--set", f"memory={memory}")
        assert done.exit_code == 0, done.stderr
        found[model] = contents(out)
    assert found["streamed"].keys() == found["resident"].keys()
    assert len(found["resident"]) > 3
    for name, content in found["resident"].items():
        assert found["streamed"][name] == content, name


def write(path: Path, folder: Path, settings: dict[str, Any]) -> None:
    """Few windows, enough random plans for a comparison, and a task of log-likelihood kind."""
    recipe = yaml.safe_load(path.read_text())
    recipe["validate"] |= {"random_plans": 20, "sequences": 6, "chance": "normal", "progressive": CURVES}
    if "compare" not in settings:
        tasks = {"names": ["guess"], "include": str(task_file(folder / "tasks")), "limit": 8}
        recipe["validate"]["tasks"] = {**tasks, "random_plans": 5}
    path.write_text(yaml.safe_dump(recipe | settings))


def contents(run: Path) -> dict[str, Any]:
    files = [file for file in sorted(run.rglob("*")) if file.is_file() and file.name not in OWN]
    return {str(file.relative_to(run)): _content(file, run) for file in files}


def _content(file: Path, run: Path) -> Any:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:  # metadata come in any order
            numbers = {key: tensors.get_tensor(key).tolist() for key in tensors.keys()}  # noqa: SIM118
            return repr(numbers), tensors.metadata()
    return file.read_bytes().replace(str(run).encode(), b"RUN")
