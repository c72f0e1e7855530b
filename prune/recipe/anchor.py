"""Paths of a recipe, made absolute: they start from its own folder, whichever folder Excise is run in."""

from pathlib import Path
from typing import Any

from criteria.text.sources import anchor
from experts.disk.names import DEMO, hub_name
from prune.recipe.schema import FinetuneSettings, Recipe, TaskSettings, TextSettings, ValidateSettings


def anchored_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with absolute paths. Names of models on the hub get one form.

    Args:
        folder: what relative paths start from.
    """
    changes: dict[str, Any] = {
        "model": _model(recipe.model, folder),
        "memory": recipe.memory.model_copy(update={"spill": _path(recipe.memory.spill, folder)}),
        "criteria": tuple(_criterion(name, folder) for name in recipe.criteria),
        "calibration": recipe.calibration.model_copy(update=_sources(recipe.calibration, folder)),
        "validation": _validation(recipe.validation, folder),
    }
    if recipe.refit and recipe.refit.text:
        text = recipe.refit.text.model_copy(update=_sources(recipe.refit.text, folder))
        changes["refit"] = recipe.refit.model_copy(update={"text": text})
    if recipe.finetune:
        changes["finetune"] = _finetune(recipe.finetune, folder)
    return recipe.model_copy(update=changes)


def _model(name: str, folder: Path) -> str:
    """A folder that exists, `demo`, or the name of a model on the hub."""
    name = name.strip()
    path = anchor(Path(name), folder)
    if name not in ("", DEMO) and path.is_dir():
        return str(path)
    return str(hub_name(name) or name)


def _criterion(name: str, folder: Path) -> str:
    """file.py:function with an absolute path, also behind reversed:."""
    head, colon, rest = name.partition(":")
    if head == "reversed":
        return f"reversed:{_criterion(rest, folder)}"
    return f"{anchor(Path(head), folder)}{colon}{rest}" if head.endswith(".py") else name


def _sources(text: TextSettings, folder: Path) -> dict[str, Any]:
    return {"data": tuple(source.anchored(folder) for source in text.data)}


def _validation(validation: ValidateSettings, folder: Path) -> ValidateSettings:
    changes = _sources(validation, folder)
    if validation.tasks:
        changes["tasks"] = _tasks(validation.tasks, folder)
    return validation.model_copy(update=changes)


def _tasks(tasks: TaskSettings, folder: Path) -> TaskSettings:
    changes = {"include": _path(tasks.include, folder), "data": _path(tasks.data, folder)}
    return tasks.model_copy(update=changes)


def _finetune(finetune: FinetuneSettings, folder: Path) -> FinetuneSettings:
    changes = _sources(finetune, folder)
    changes["checkpoint"] = _path(finetune.checkpoint, folder)
    if finetune.teacher.model:
        teacher = {"model": _model(finetune.teacher.model, folder)}
        changes["teacher"] = finetune.teacher.model_copy(update=teacher)
    return finetune.model_copy(update=changes)


def _path(path: Path | None, folder: Path) -> Path | None:
    return None if path is None else anchor(path, folder)
