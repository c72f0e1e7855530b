"""A recipe's YAML file -> the models of schema.py: overrides, checks, absolute paths."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from experts.disk.names import recipes_folder
from experts.errors import ExciseError
from prune.recipe.anchor import anchored_recipe
from prune.recipe.explain import explain
from prune.recipe.overrides import override
from prune.recipe.schema import Recipe
from prune.recipe.unique_keys import load_yaml


def recipe_file(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: a path to a YAML file, or the name of a recipe that comes with Excise.

    Raises:
        ExciseError: it is neither.
    """
    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    shipped = {file.stem: file for file in sorted(recipes_folder().glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    names = ", ".join(shipped) or "none"
    raise ExciseError(f"{name}: no such recipe file, and no recipe of that name; there are {names}")


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with every path made absolute.

    Args:
        overrides: `key.path=value`, applied in order.

    Raises:
        ExciseError: the file is no recipe, or an override no assignment; one line that names the key.
    """
    data = _yaml(path)
    for assignment in overrides:
        override(data, assignment)
    return parse_recipe(data, str(path), path.parent)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExciseError(f"{path}: no such recipe") from error
    except UnicodeDecodeError as error:
        raise ExciseError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ExciseError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ExciseError(f"{path}: a recipe is a mapping of keys, found {_kind(data)}")
    return data


def _kind(data: object) -> str:
    """What YAML read instead of a mapping."""
    if data is None:
        return "nothing"
    return "a list" if isinstance(data, list) else f"one value, {data!r}"


def parse_recipe(data: dict[str, Any], origin: str, folder: Path) -> Recipe:
    """Check a recipe's data.

    Args:
        origin: where it is from, for error messages.
        folder: what relative paths start from.

    Raises:
        ExciseError: the first problem, in one line.
    """
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise ExciseError(f"{origin}: {explain(error)}") from error
    return anchored_recipe(recipe, folder)
