"""Quantisation settings that name single experts: the names follow to the new numbers. No torch.

config.json has them in lists (ignore, modules_to_not_convert), in keys (AutoRound's extra_config) and deeper (targets of
compressed-tensors), and some tools write a file of their own beside it.
"""

import re
import reprlib
from collections.abc import Iterator
from typing import Any

from experts.disk.tensors import NAMED_EXPERT
from experts.errors import ExciseError
from experts.plan import Plan

QUANTIZATION_KEYS = ("quantization_config", "compression_config")  # in config.json
SINGLE = re.compile(r"experts\\?\.(?!\[0-9\][+*])[(\[]?\d")  # in a pattern, or in a name without its layer


def renumbered(settings: Any, plan: Plan, where: str) -> Any:
    """The settings with every kept expert under its new number, and without those that go. where: for the error message.

    Raises ExciseError for a pattern that means some experts and not others: it would mean other ones afterwards.
    """
    if isinstance(settings, dict):
        return {
            new: renumbered(value, plan, where)
            for key, value in settings.items()
            for new in _follow(key, plan, where)
        }
    if isinstance(settings, list):
        return [
            new
            for entry in settings
            for new in (
                _follow(entry, plan, where) if isinstance(entry, str) else [renumbered(entry, plan, where)]
            )
        ]
    return settings


def _follow(name: str, plan: Plan, where: str) -> Iterator[str]:
    """The new name of a module; nothing for an expert that goes."""
    named = NAMED_EXPERT.match(name)
    if named is None:
        if SINGLE.search(name):
            raise ExciseError(
                f"{where}: {reprlib.repr(name)} means single experts, whose numbers change; write them out, one full name each"
            )
        yield name
        return
    kept = plan.kept.get(int(named["layer"]))
    if kept is None:
        yield name
    elif int(named["id"]) in kept:
        yield f"{named['head']}{kept.index(int(named['id']))}{named['tail']}"
