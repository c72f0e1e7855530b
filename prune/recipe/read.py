"""A recipe's YAML file -> the models of schema.py: overrides, absolute paths, errors of one line that name the nearest key."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from criteria.text.sources import Source, anchor
from experts.disk.names import DEMO, hub_name, recipes_folder
from experts.errors import ExciseError
from finetune.settings import TeacherSettings
from prune.recipe.schema import (
    BUDGETS,
    AuditSettings,
    CompareSettings,
    FinetuneSettings,
    ProgressiveSettings,
    PruneSettings,
    Recipe,
    TaskSettings,
    TextSettings,
    ValidateSettings,
)


def recipe_file(name: str) -> Path:
    """A path to a YAML file, or the name of a recipe that comes with Excise."""
    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    shipped = {file.stem: file for file in sorted(recipes_folder().glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    raise ExciseError(
        f"{name}: no such recipe file, and no recipe of that name; there are {', '.join(shipped) or 'none'}"
    )


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe with `key.path=value` overrides applied, and every path made absolute."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExciseError(f"{path}: no such recipe") from error
    except UnicodeDecodeError as error:
        raise ExciseError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ExciseError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ExciseError(f"{path}: a recipe is a mapping of keys, found {type(data).__name__}")
    for override in overrides:
        _override(data, override)
    return parse_recipe(data, str(path), path.parent)


def parse_recipe(data: dict[str, Any], origin: str, folder: Path) -> Recipe:
    """Checks a recipe's data. origin: named in errors; folder: what relative paths start from."""
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise ExciseError(f"{origin}: {_explain(error)}") from error
    return _anchored(recipe, folder)


def _override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ExciseError(f"--set {override}: expected key.path=value, for example prune.fraction=0.25")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ExciseError(
            f"--set {override}: the value is not valid YAML ({' '.join(str(error).split())})"
        ) from error
    *parents, last = path.split(".")
    table = data
    for key in parents:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ExciseError(f"--set {override}: {key} is not a table of keys")
    if (
        parents == ["prune"] and last in BUDGETS and value is not None
    ):  # the budgets exclude each other: the new one replaces the old
        for other in BUDGETS:
            table.pop(other, None)
    table[last] = value


def _explain(error: ValidationError) -> str:
    """The first problem as one line: the key, what is wrong, the nearest known key."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys([str(part) for part in first["loc"][:-1]])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        return f"unknown key {where!r}; " + (
            f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        )
    message = first["msg"].removeprefix("Value error, ")
    shown = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    return f"{where or 'recipe'}: {message[0].lower()}{message[1:]}{shown}"


def _known_keys(path: list[str]) -> list[str]:
    tables: dict[str, type[BaseModel]] = {
        "calibration": TextSettings,
        "prune": PruneSettings,
        "validate": ValidateSettings,
        "data": Source,
        "compare": CompareSettings,
        "audit": AuditSettings,
        "progressive": ProgressiveSettings,
        "tasks": TaskSettings,
        "finetune": FinetuneSettings,
        "teacher": TeacherSettings,
    }
    table = next((tables[key] for key in reversed(path) if key in tables), Recipe)
    return [field.alias or name for name, field in table.model_fields.items()]


def _anchored_criterion(name: str, folder: Path) -> str:
    """file.py:function with an absolute path, also behind reversed:."""
    head, colon, rest = name.partition(":")
    if head == "reversed":
        return f"reversed:{_anchored_criterion(rest, folder)}"
    return f"{anchor(Path(head), folder)}{colon}{rest}" if head.endswith(".py") else name


def _anchored(recipe: Recipe, folder: Path) -> Recipe:
    def text(part: TextSettings) -> dict[str, Any]:
        return {"data": tuple(source.anchored(folder) for source in part.data)}

    def name(model: str) -> str:
        model = model.strip()
        path = anchor(Path(model), folder)
        return str(path) if model not in ("", DEMO) and path.is_dir() else str(hub_name(model) or model)

    tasks, finetune = recipe.validation.tasks, recipe.finetune
    if tasks:
        folders = {
            key: path and anchor(path, folder)
            for key, path in (("include", tasks.include), ("data", tasks.data))
        }
        tasks = tasks.model_copy(update=folders)
    if finetune:
        teacher = finetune.teacher.model_copy(
            update={"model": finetune.teacher.model and name(finetune.teacher.model)}
        )
        checkpoint = finetune.checkpoint and anchor(finetune.checkpoint, folder)
        finetune = finetune.model_copy(
            update={**text(finetune), "teacher": teacher, "checkpoint": checkpoint}
        )
    return recipe.model_copy(
        update={
            "model": name(recipe.model),
            "criteria": tuple(_anchored_criterion(name, folder) for name in recipe.criteria),
            "calibration": recipe.calibration.model_copy(update=text(recipe.calibration)),
            "validation": recipe.validation.model_copy(update={**text(recipe.validation), "tasks": tasks}),
            "finetune": finetune,
        }
    )
