"""What a checkpoint was made from, step by step: a pruned or recovered folder can be pruned again."""

from pathlib import Path
from typing import Any

from experts.disk.companions import PLAN, RECOVERY
from experts.disk.shards import read_json
from experts.errors import ExciseError

REFIT = "refit"  # key of excise_recovery.json where weights were refitted, not trained
STEPS = "history"  # key of excise_plan.json: the steps before this one, the oldest first


def steps_of(folder: Path) -> list[Any]:
    """The steps that led to a folder, the oldest first.

    A step is {"plan": …} or, where weights were trained after it, {"plan": …, "recovery": …}. A damaged
    provenance file is a step by itself, which says so.

    Returns:
        An empty list for a folder that Excise did not write.
    """
    if not (folder / PLAN).is_file():
        return []
    step = {"plan": _read(folder / PLAN)}
    if (folder / RECOVERY).is_file():
        step["recovery"] = _read(folder / RECOVERY)
    before = step["plan"].pop(STEPS, [])
    return [*(before if isinstance(before, list) else [before]), step]


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ExciseError as error:
        return {"damaged": str(error)}


def in_words(steps: list[Any]) -> str:
    """The steps in one line, for the model card and `excise inspect`; empty where there are none."""
    return "; ".join(_step_in_words(step) for step in steps)


def _step_in_words(step: Any) -> str:
    try:
        plan = step["plan"]
        counts = sorted({len(ids) for ids in plan["kept"].values()})
        each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        kept = f"pruned to {each} of {plan['experts']} experts per layer"
        how = f" ({plan.get('criterion') or 'made by hand'}, {plan.get('budget') or 'no budget recorded'})"
    except (KeyError, TypeError, AttributeError, IndexError):
        return "pruned by a plan that cannot be read any more"
    recovery = step.get("recovery")
    if recovery is None:
        return f"{kept}{how}"
    return f"{kept}{how}, then {_changes_in_words(recovery)}"


def _changes_in_words(recovery: Any) -> str:
    """What was done to the weights, in its order."""
    changes = []
    if REFIT in recovery:
        changes.append("refitted and trained layer by layer" if recovery[REFIT].get("local") else "refitted")
    if "training" in recovery or not changes:
        changes.append("trained")
    return ", then ".join(changes)
