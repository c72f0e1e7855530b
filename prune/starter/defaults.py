"""The recipe of a model that has none: half the experts, by reap, calibrated and refitted on its own text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from criteria.by_name import resolve
from criteria.criterion import DOMAINS as COMPARES_DOMAINS
from criteria.text.context_length import learned_positions, most_positions
from criteria.text.sampled.settings import Sampled
from criteria.text.sources import Source
from experts.disk.layout import Layout
from experts.notes import tell
from prune.forecast.memory import fits
from prune.recipe.overrides import override
from prune.recipe.read import parse_recipe
from prune.recipe.schema import Recipe
from prune.session.prepared import Checked
from prune.starter.request import Wishes

FRACTION, CRITERION = 0.5, "reap"
CALIBRATION, VALIDATION = 128, 64  # windows
LENGTH = 512  # tokens per window
SHORTEST = 17  # which a recipe allows
DOMAINS = ("code", "prose")
OWN = (Source(sampled=Sampled()),)
NO_ROOM = (
    "{}: read layer by layer, so it cannot write its own calibration text, and the standard library of "
    "Python takes its place; `excise sample` on a machine where it fits writes a file for "
    "--set 'calibration.data={{sampled: {{file: samples.jsonl}}}}'"
)


def starter_recipe(model: str, wishes: Wishes, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe for a model.

    Args:
        model: absolute folder, or name on the hub.
        overrides: `key.path=value`, applied in order.

    Raises:
        ExciseError: an override is no assignment, or a value does not fit.
    """
    data: dict[str, Any] = {
        "model": model,
        "calibration": {
            "sequences": CALIBRATION,
            "length": LENGTH,
        },
        "criteria": [CRITERION if wishes.criterion is None else wishes.criterion],
        "prune": _budget(wishes),
        "validate": {
            "data": _library("test") if wishes.text is None else _file(wishes.text),
            "sequences": VALIDATION,
            "length": LENGTH,
        },
        "refit": {"if_possible": True},
    }
    for assignment in overrides:
        override(data, assignment)
    if isinstance(data["calibration"], dict) and "data" not in data["calibration"]:
        data["calibration"]["data"] = _calibration(wishes.text, data["criteria"])
    return parse_recipe(data, model, Path.cwd())


def _calibration(text: Path | None, criteria: object) -> list[dict[str, Any]]:
    """Text of the model itself, unless there is other text or a criterion compares domains of text."""
    if text is not None:
        return _file(text)
    names = [name for name in criteria if isinstance(name, str)] if isinstance(criteria, list) else []
    compares = any(resolve(name).needs == COMPARES_DOMAINS for name in names)
    return _library("calibration") if compares else [{"sampled": {}}]


def window_length(layout: Layout) -> int:
    """Tokens per window: as many as the model was made for, at most LENGTH."""
    shapes = {name: tensor.shape for name, tensor in layout.checkpoint.tensors.items()}
    limits = (most_positions(layout.checkpoint.config), learned_positions(shapes))
    return max(SHORTEST, min(limit for limit in (LENGTH, *limits) if limit is not None))


def fitted(checked: Checked) -> Checked:
    """The same with windows that fit the model, now that its headers are read; a length by hand stays.

    A model that would be read layer by layer cannot write its own text: the standard library takes its place.
    """
    length = window_length(checked.layout)
    recipe = checked.recipe
    changes: dict[str, Any] = {}
    if recipe.calibration.length == LENGTH:
        changes["calibration"] = recipe.calibration.model_copy(update={"length": length})
    if recipe.calibration.data == OWN and not fits(checked):
        tell(NO_ROOM.format(recipe.model))
        library = tuple(Source.model_validate(source) for source in _library("calibration"))
        text = changes.get("calibration", recipe.calibration)
        changes["calibration"] = text.model_copy(update={"data": library})
    if recipe.validation.length == LENGTH:
        changes["validation"] = recipe.validation.model_copy(update={"length": length})
    return replace(checked, recipe=recipe.model_copy(update=changes))


def with_parts(recipe: Recipe, text: Path, calibration: Source, validation: Source) -> Recipe:
    """The recipe on the two parts of a text, where it names the whole."""
    whole = _whole(text)
    changes: dict[str, Any] = {}
    if recipe.calibration.data == whole:
        changes["calibration"] = recipe.calibration.model_copy(update={"data": (calibration,)})
    if recipe.validation.data == whole:
        changes["validation"] = recipe.validation.model_copy(update={"data": (validation,)})
    return recipe.model_copy(update=changes)


def _whole(text: Path) -> tuple[Source, ...]:
    return (Source(text=(text.absolute(),)),)


def _file(text: Path) -> list[dict[str, Any]]:
    return [{"text": [str(text.absolute())]}]


def _library(split: str) -> list[dict[str, Any]]:
    """The standard library of Python."""
    return [{"stdlib": domain, "split": split} for domain in DOMAINS]


def _budget(wishes: Wishes) -> dict[str, Any]:
    if wishes.keep is not None:
        return {"keep": wishes.keep}
    if wishes.target_size is not None:
        return {"target_size": wishes.target_size}
    return {"fraction": FRACTION if wishes.fraction is None else wishes.fraction}
