"""A validation error of pydantic as one line: the key, what is wrong with it, the nearest key that exists."""

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from criteria.text.sampled.settings import Sampled
from criteria.text.sources import Source
from experts.settings import known_keys, nearest
from finetune.refit.settings import LocalSettings
from finetune.settings import TeacherSettings
from prune.recipe.memory_settings import MemoryTable
from prune.recipe.schema import (
    AuditSettings,
    CalibrationSettings,
    CompareSettings,
    FinetuneSettings,
    ProgressiveSettings,
    PruneSettings,
    Recipe,
    RefitTable,
    TaskSettings,
    TextSettings,
    ValidateSettings,
)

TABLES: dict[str, type[BaseModel]] = {
    "calibration": CalibrationSettings,
    "prune": PruneSettings,
    "validate": ValidateSettings,
    "data": Source,
    "sampled": Sampled,
    "memory": MemoryTable,
    "compare": CompareSettings,
    "audit": AuditSettings,
    "progressive": ProgressiveSettings,
    "tasks": TaskSettings,
    "finetune": FinetuneSettings,
    "refit": RefitTable,
    "text": TextSettings,
    "local": LocalSettings,
    "teacher": TeacherSettings,
}

# Of pydantic, in words of a recipe.
MESSAGES = {"path_type": "expected the path of a file or folder"}


def explain(error: ValidationError) -> str:
    """The first problem of a recipe, in one line."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return _unknown_key(path)
    if first["type"] == "model_type":
        keys = ", ".join(_known_keys(path))
        return f"{'.'.join(path) or 'recipe'}: expected keys of its own ({keys}), got {first['input']!r}"
    message = MESSAGES.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(path) or 'recipe'}: {message[0].lower()}{message[1:]}{_shown(first)}"


def _shown(error: ErrorDetails) -> str:
    """The value that was given, where the message does not say it."""
    return "" if error["type"] in ("missing", "value_error") else f", got {error['input']!r}"


def _unknown_key(path: list[str]) -> str:
    known = _known_keys(path[:-1])
    return f"unknown key {'.'.join(path)!r}; {nearest(path[-1], known)}"


def _known_keys(path: list[str]) -> list[str]:
    """Keys of the table at the end of a path."""
    table = next((TABLES[key] for key in reversed(path) if key in TABLES), Recipe)
    return known_keys(table)
