"""recipe.yaml in a run folder; refuses the folder to a recipe that would make another checkpoint."""

from pathlib import Path
from typing import Any

import yaml

from experts.errors import ExciseError
from experts.keys import environment
from prune.session.prepared import Prepared
from prune.session.run_folder import CHECKPOINT, write_json, write_text

RECIPE = "recipe.yaml"
# What makes the checkpoint; of the criteria only the first one does.
DECISIVE = ("model", "dtype", "calibration", "criteria", "prune", "refit")


def keep_recipe(prepared: Prepared) -> None:
    """Write the resolved recipe; refuse a folder that holds the checkpoint of another one."""
    folder = prepared.folder.path
    resolved = prepared.recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    resolved["model"] = prepared.pinned
    if (folder / RECIPE).is_file() and (folder / CHECKPOINT).exists() and not prepared.force:
        before = _recipe_before(folder / RECIPE)
        if before.get("model") == prepared.recipe.model:
            # From before commits were written down; the fingerprints decide.
            before["model"] = prepared.pinned
        before["criteria"] = before.get("criteria", ["reap"])[:1]
        _check_same(folder, before, {**resolved, "criteria": [prepared.recipe.criteria[0]]})
    write_text(folder / RECIPE, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    write_json(folder / "environment.json", environment())


def _recipe_before(path: Path) -> dict[str, Any]:
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):
        before = None
    if not isinstance(before, dict):
        why = "damaged, so it cannot be told what this run made"
        raise ExciseError(f"{path}: {why}; choose another --output, or --force")
    return before


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key in DECISIVE:
        if before.get(key) != now.get(key):
            raise ExciseError(
                f"{folder}: holds a checkpoint made with {key}: {before.get(key)}, now {now.get(key)}; "
                "choose another --output, or --force to replace it"
            )
