"""Quantisation settings that name single experts: the names follow to the new numbers.

config.json has them in lists (ignore, modules_to_not_convert), in keys (AutoRound's extra_config) and deeper
(targets of compressed-tensors), and some tools write a file of their own beside it.
"""

import re
import reprlib
from typing import Any

from experts.disk.tensors import NAMED_EXPERT
from experts.errors import ExciseError
from experts.plan import Plan

QUANTIZATION_KEYS = ("quantization_config", "compression_config")  # in config.json
# In a pattern, or in a name without its layer.
SINGLE_EXPERT = re.compile(r"experts\\?\.(?!\[0-9\][+*])[(\[]?\d")


def renumber(settings: Any, plan: Plan, where: str) -> Any:
    """Quantisation settings with every kept expert under its new number, and without those that are removed.

    Args:
        settings: any JSON value.
        where: file and key, for the error message.

    Raises:
        ExciseError: a pattern matches some experts and not others; afterwards it would match other ones.
    """
    if isinstance(settings, dict):
        return _renumber_keys(settings, plan, where)
    if isinstance(settings, list):
        return _renumber_entries(settings, plan, where)
    return settings


def _renumber_keys(settings: dict[str, Any], plan: Plan, where: str) -> dict[str, Any]:
    after = {}
    for key, value in settings.items():
        name = _new_name(key, plan, where)
        if name is not None:
            after[name] = renumber(value, plan, where)
    return after


def _renumber_entries(settings: list[Any], plan: Plan, where: str) -> list[Any]:
    after: list[Any] = []
    for entry in settings:
        if not isinstance(entry, str):
            after.append(renumber(entry, plan, where))
            continue
        name = _new_name(entry, plan, where)
        if name is not None:
            after.append(name)
    return after


def _new_name(name: str, plan: Plan, where: str) -> str | None:
    """The new name of a module; None for an expert that is removed."""
    named = NAMED_EXPERT.match(name)
    if named is None:
        if SINGLE_EXPERT.search(name):
            raise ExciseError(
                f"{where}: {reprlib.repr(name)} means single experts, whose numbers change; "
                "write them out, one full name each"
            )
        return name
    kept = plan.kept.get(int(named["layer"]))
    if kept is None:
        return name
    expert = int(named["id"])
    if expert not in kept:
        return None
    return f"{named['head']}{kept.index(expert)}{named['tail']}"
