"""Where a model's weights are while it works: all in memory, or a layer at a time."""

from dataclasses import dataclass

import torch

from experts.disk.shards import Checkpoint
from experts.errors import ExciseError
from experts.limits import processes_here
from experts.memory import free_bytes
from experts.memory_rule import ASKED, limit_too_small, room_for, too_large
from experts.memory_settings import MemorySettings
from experts.notes import tell
from experts.ranks import joined
from experts.streaming.forecast import forecast_sizes
from experts.units import human

FACTOR = 8  # by which weights can grow in memory: from 4 bits to 32
FEW = 0.5  # of the free memory, below which nothing is to be decided


@dataclass(frozen=True)
class Choice:
    """How a model is loaded.

    Attributes:
        streamed: whether decoder layers are read one by one
        device: where the weights go
        why: what was compared with what
        weights: bytes that they take at most
        close: whether there was anything to decide
        spread: whether the layers go to all GPUs; `device` is then the first one's
    """

    streamed: bool
    device: torch.device
    why: str
    weights: int
    close: bool = True
    spread: bool = False

    def announce(self) -> None:
        """Tell the user what was chosen, and why."""
        if self.close:
            where = "all GPUs" if self.spread else str(self.device)
            tell(f"memory: {'streamed' if self.streamed else 'resident'} on {where} ({self.why})")


def choose(
    checkpoint: Checkpoint,
    settings: MemorySettings,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    device: torch.device | None = None,
) -> Choice:
    """Decide from the sizes of a model's parts and the memory that is free.

    Args:
        checkpoint: headers of the model
        settings: what the user says
        dtype: precision in memory: auto (as stored), float32, bfloat16, float16
        trust_remote_code: run code that comes with the checkpoint
        device: where the weights go; by default the GPU if they fit there, else the CPU

    Raises:
        ExciseError: not even a layer fits, or the limit is below what `resident` takes.
    """
    places = [device] if device is not None else _places()
    if settings.model != "streamed" and FACTOR * checkpoint.size < FEW * _room(places[0], settings):
        why = _why(checkpoint.size, places[0], settings, "the weights take")
        return Choice(False, places[0], why, checkpoint.size, close=False)
    sizes = forecast_sizes(checkpoint, dtype, trust_remote_code)
    last = places[-1]
    spread = _over_all_gpus(sizes.whole, settings) if device is None else None
    if settings.model != "streamed" and spread is not None:
        return spread
    if settings.model != "streamed":
        for place in places:
            if sizes.whole <= _room(place, settings):
                return Choice(
                    False, place, _why(sizes.whole, place, settings, "the weights take"), sizes.whole
                )
        if settings.model == "resident":
            _check_limit(checkpoint, sizes.whole, settings)
            return Choice(False, last, _why(sizes.whole, last, settings, "the weights take"), sizes.whole)
    for place in places:
        if sizes.streamed <= _room(place, settings):
            would = _why(sizes.whole, place, settings, "the weights would take")
            why = ASKED if settings.model == "streamed" else would
            with_layers = f"{why}; with a layer at a time, {human(sizes.streamed)}"
            return Choice(True, place, with_layers, sizes.streamed)
    outside, largest, limit = sizes.resident_bytes, max(sizes.layer_bytes), _limit(settings)
    raise ExciseError(too_large(str(checkpoint.folder), outside, largest, _free(last), limit, str(last)))


def _over_all_gpus(weights: int, settings: MemorySettings) -> Choice | None:
    """All GPUs together, where the weights fit there and not on one; ranks of torchrun have one each."""
    cards = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    if len(cards) < 2 or joined() is not None:
        return None
    free = [free_bytes(card) for card in cards]
    if weights <= room_for(free[0], settings.limit) or weights > room_for(sum(free), settings.limit):
        return None
    why = f"the weights take {human(weights)}, and {human(sum(free))} are free on {len(cards)} GPUs"
    return Choice(False, cards[0], why, weights, spread=True)


def _places() -> list[torch.device]:
    """The GPU where there is one, then the CPU."""
    cpu = torch.device("cpu")
    return [torch.device("cuda", torch.cuda.current_device()), cpu] if torch.cuda.is_available() else [cpu]


def _room(device: torch.device, settings: MemorySettings) -> int:
    """Bytes that weights may take."""
    return room_for(_free(device), _limit(settings))


def _free(device: torch.device) -> int:
    """Bytes that are free on a device; of main memory, before any rank of torchrun loaded the model."""
    ranks = joined()
    return ranks.free if ranks is not None and device.type == "cpu" else free_bytes(device)


def _limit(settings: MemorySettings) -> int | None:
    """This process's part of the limit."""
    return None if settings.limit is None else settings.limit // processes_here()


def _check_limit(checkpoint: Checkpoint, weights: int, settings: MemorySettings) -> None:
    """Refuse a limit below what the user asks to keep in memory."""
    limit = _limit(settings)
    if limit is not None and weights > limit:
        raise ExciseError(limit_too_small(str(checkpoint.folder), weights, limit))


def _why(size: int, device: torch.device, settings: MemorySettings, verb: str) -> str:
    return f"{verb} {human(size)}, and {_told(device, settings)}"


def _told(device: torch.device, settings: MemorySettings) -> str:
    limit, free = _limit(settings), _free(device)
    if limit is not None and limit < room_for(free):
        return f"memory.limit is {human(limit)}"
    return f"{human(free)} are free on {device}"
