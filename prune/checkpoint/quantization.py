"""Quantisation settings that name single experts: the names follow to the new numbers.

config.json has them in lists (ignore, modules_to_not_convert), in keys (AutoRound's extra_config) and deeper
(targets of compressed-tensors), and some tools write a file of their own beside it.
"""

import re
import reprlib
from collections.abc import Collection, Sequence
from typing import Any

from experts.disk.quantised import PACKED, PLAIN
from experts.disk.tensors import NAMED_EXPERT
from experts.errors import ExciseError
from experts.plan import Plan
from prune.checkpoint.slices import NewTensor

QUANTIZATION_KEYS = ("quantization_config", "compression_config")  # in config.json
EXEMPT_KEYS = ("modules_to_not_convert", "ignored_layers")  # modules that are not quantised
HEAD = "lm_head"  # exempt of itself where no modules are named
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


def without(
    settings: dict[str, Any], modules: Sequence[str], pieces: Collection[NewTensor]
) -> dict[str, Any] | None:
    """Quantisation settings that leave out modules which are now stored plainly.

    Args:
        settings: of the source.
        modules: full names.
        pieces: tensors of the new checkpoint.

    Returns:
        None where nothing is quantised any more.
    """
    if not any(piece.dtype in PACKED for piece in pieces):
        return None
    key = next((key for key in EXEMPT_KEYS if settings.get(key) is not None), EXEMPT_KEYS[0])
    exempt = settings.get(key)
    if exempt is None:  # a reader leaves out what it knows of itself only where no list is given
        exempt = [HEAD, *_plain_layers(pieces)]
    return {**settings, key: list(dict.fromkeys([*exempt, *modules]))}


def _plain_layers(pieces: Collection[NewTensor]) -> list[str]:
    """Names of the matrices outside the experts that are not quantised."""
    found = [piece.name for piece in pieces if piece.dtype in PLAIN and len(piece.shape) == 2]
    weights = [name for name in found if name.endswith(".weight") and ".experts." not in name]
    return sorted(name.removesuffix(".weight") for name in weights)
