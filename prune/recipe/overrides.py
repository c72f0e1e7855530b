"""`--set key.path=value`: single values of a recipe, replaced for one run."""

from typing import Any

import yaml

from experts.errors import ExciseError
from prune.recipe.prune_settings import BUDGETS
from prune.recipe.unique_keys import load_yaml


def override(data: dict[str, Any], assignment: str) -> None:
    """Set one value in a recipe's data; tables on the way are made.

    Args:
        assignment: `key.path=value`, the value in YAML.

    Raises:
        ExciseError: it is no assignment, its value is not YAML, or its path leads through a value.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise ExciseError(f"--set {assignment}: expected key.path=value, for example prune.fraction=0.25")
    value = _value(assignment, text)
    *parents, key = path.split(".")
    table = _table(data, parents, assignment)
    if parents == ["prune"] and key in BUDGETS and value is not None:
        _drop_budgets(table)
    table[key] = (table.get(key) or {}) if value == {} else value  # an empty table changes no key


def _value(assignment: str, text: str) -> Any:
    try:
        return load_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ExciseError(f"--set {assignment}: the value is not valid YAML ({why})") from error


def _table(data: dict[str, Any], parents: list[str], assignment: str) -> dict[str, Any]:
    table = data
    for key in parents:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ExciseError(f"--set {assignment}: {key} is not a table of keys")
    return table


def _drop_budgets(table: dict[str, Any]) -> None:
    """The budgets exclude each other: the new one replaces whichever the recipe has."""
    for budget in BUDGETS:
        table.pop(budget, None)
