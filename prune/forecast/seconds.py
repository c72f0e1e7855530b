"""How long a command takes: its window forwards, at a speed that an earlier run wrote down."""

import math
from collections.abc import Sequence

from prune.forecast.result import StageJson
from prune.recipe.schema import Recipe
from prune.session.speed import Speed, this_machine

UNKNOWN = (
    "no run of this model in dtype {} has tested a plan here; the first one that does writes its speed down"
)


def seconds_of(
    stages: Sequence[StageJson], speeds: Sequence[Speed], recipe: Recipe
) -> tuple[float | None, str]:
    """The time of all stages whose cost is known, and what it is computed from.

    Windows of another length count by their tokens.

    Args:
        stages: of the command
        speeds: records of the model, the newest last

    Returns:
        Seconds and their source; or None, and why there is no estimate.
    """
    usable = [speed for speed in speeds if speed["dtype"] == recipe.dtype]
    if not usable:
        return None, UNKNOWN.format(recipe.dtype)
    speed = _nearest(usable, recipe)
    tokens = sum(stage["length"] * (stage["windows"] or 0) for stage in stages)
    seconds = tokens / speed["length"] / (speed["windows"] / speed["seconds"])
    return seconds, f"{_source(speed)}{_left_out(stages)}"


def _nearest(speeds: Sequence[Speed], recipe: Recipe) -> Speed:
    """Of this machine first, then of windows and batches most like the recipe's, then the newest."""
    text, here = recipe.validation, this_machine()

    def distance(speed: Speed) -> tuple[bool, float, float]:
        length = abs(math.log(speed["length"] / text.length))
        return speed["machine"] != here, length, abs(math.log(speed["batch"] / text.batch))

    return min(reversed(speeds), key=distance)


def _source(speed: Speed) -> str:
    """A record in words."""
    rate = speed["windows"] / speed["seconds"]
    where = "" if speed["machine"] == this_machine() else f" of {speed['machine']}, another machine"
    return (
        f"an earlier run forwarded {rate:.3g} windows of {speed['length']} tokens a second "
        f"({speed['device']}{where}; dtype {speed['dtype']}, batch {speed['batch']})"
    )


def _left_out(stages: Sequence[StageJson]) -> str:
    names = [stage["stage"] for stage in stages if stage["windows"] is None]
    return f"; not counted: {', '.join(names)}" if names else ""
