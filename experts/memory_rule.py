"""How much memory weights may take: arithmetic alone, so that a forecast can ask without torch."""

from experts.limits import processes_here
from experts.units import human

SHARE = 0.8  # of the free memory that weights, or waiting states, may take; the rest is for the work
ASKED = "as memory.model says"  # why a model is streamed that would fit, or might
COPIES = 2.5  # layers in memory at most: one to compute with, the next one, and copies while it is converted


def room_for(free: int, limit: int | None = None) -> int:
    """Bytes that weights may take.

    Args:
        free: bytes on their device
        limit: what the user allows; None = no more than the share says
    """
    share = int(SHARE * free)
    return share if limit is None else min(share, limit)


def streamed_bytes(outside: int, largest: int) -> int:
    """Bytes of weights at a time, at most, where decoder layers are read one by one.

    Args:
        outside: bytes outside the decoder layers
        largest: bytes of the largest decoder layer
    """
    return outside + int(COPIES * largest)


def not_resident(model: str, purpose: str, why: str, *, asked: bool) -> str:
    """The refusal of what needs the whole network in memory.

    Args:
        model: its name
        purpose: what is asked for, as the subject of a sentence
        why: the model is streamed
        asked: whether the user wants it streamed
    """
    way = "let memory.model be auto" if asked else "use a machine where it fits"
    return (
        f"{model}: {purpose} needs the whole model in memory, and it is streamed ({why}); "
        f"{way}, or leave that out"
    )


def limit_too_small(model: str, weights: int, limit: int) -> str:
    """The refusal of a limit below what the user asks to keep in memory.

    Args:
        model: its name
        weights: bytes that they take
        limit: what the user allows this process
    """
    return (
        f"{model}: the weights take {human(weights)}, and {_limit_is(limit)}; "
        f"raise it to {_for_all(weights)}, or set memory.model to auto or streamed"
    )


def too_large(model: str, outside: int, largest: int, free: int, limit: int | None, where: str) -> str:
    """The refusal of a model of which not even a layer at a time fits, with the way out.

    Args:
        model: its name
        outside: bytes outside the decoder layers
        largest: bytes of the largest decoder layer
        free: bytes on the device
        limit: what the user allows
        where: the device, in words
    """
    needed = streamed_bytes(outside, largest)
    parts = f"{human(outside)} outside the decoder layers and {COPIES} × {human(largest)} for the largest"
    if limit is not None and limit < int(SHARE * free):
        out = f"and {_limit_is(limit)}; raise it to {_for_all(needed)}"
    else:
        out = f"and {human(free)} are free on {where}, of which weights may take {SHARE:.0%}"
        out += "; use a machine with more memory, or a smaller dtype"
    return f"{model}: not even a layer at a time fits: {human(needed)} are needed ({parts}), {out}"


def _limit_is(limit: int) -> str:
    """This process's limit, and where it comes from."""
    count = processes_here()
    part = f" (its part for one of {count} processes)" if count > 1 else ""
    return f"memory.limit is {human(limit)}{part}"


def _for_all(size: int) -> str:
    """What the limit has to be, so that every process of this machine may take so much."""
    return human(size * processes_here())
