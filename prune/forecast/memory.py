"""What a run takes in memory, and how often it reads the files: from names and shapes of tensors alone."""

from dataclasses import dataclass

from criteria.text.sampled.settings import not_here
from experts.disk.configuration import positive_int, text_config
from experts.disk.layout import Layout
from experts.disk.shards import Stored
from experts.disk.tensors import list_of, numbers_in
from experts.errors import ExciseError
from experts.limits import free_memory
from experts.memory_rule import ASKED, limit_too_small, not_resident, room_for, streamed_bytes, too_large
from experts.sweep.waiting import Waiting, no_room
from experts.units import human, parse_size
from prune.checkpoint.rehearsal import trial_plans
from prune.checkpoint.slices import pruned_size
from prune.forecast.loading import loading_seconds
from prune.forecast.readings import readings_of
from prune.forecast.result import MemoryJson
from prune.forecast.stages import TEST, stages_of
from prune.machine import free_disk
from prune.recipe.schema import TextSettings
from prune.session.prepared import Checked

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DEQUANTISED = {"F8_E4M3": 2, "F8_E5M2": 2, "U8": 4}  # bytes an element has in bfloat16; U8 holds two codes
SCALES = ("_scale_inv", "_scales", "_scale")  # ends of the names of what is gone in memory
LOGIT = 4  # bytes; losses are computed in float32
CHECKPOINT_READINGS = 3  # of what is kept: written, compared with what was written, and reloaded


@dataclass(frozen=True)
class Parts:
    """Bytes of the weights in memory.

    Attributes:
        outside: the decoder layers
        layers: of each decoder layer
    """

    outside: int
    layers: tuple[int, ...]

    @property
    def whole(self) -> int:
        return self.outside + sum(self.layers)

    @property
    def largest(self) -> int:
        return max(self.layers, default=0)


def memory(command: str, checked: Checked) -> MemoryJson:
    """Sizes, and whether the weights would stay in memory on a machine without GPUs.

    Raises:
        ExciseError: the run would be refused for them: not even a layer fits, or the disk is too small for
            states that wait, or something needs all weights and they do not fit.
    """
    recipe, layout = checked.recipe, checked.layout
    free, limit = free_memory(), _limit(checked)
    parts = parts_of(layout, recipe.dtype)
    at_a_time = streamed_bytes(parts.outside, parts.largest)
    streamed = _is_streamed(checked, parts, free, limit)
    waiting = _waiting(command, checked, len(parts.layers))
    spill = checked.folder.spill
    room = room_for(max(0, min(free, limit or free) - at_a_time))
    spilled = waiting.on_disk(room) if streamed else 0
    if spilled > free_disk(spill):
        sizes = human(spilled), human(room), human(free_disk(spill))
        raise ExciseError(no_room(spill, command, *sizes))
    readings = readings_of(command, checked, waiting.passes(room)) if streamed else ["loading"]
    return {
        "model": "streamed" if streamed else "resident",
        "weights": parts.whole,
        "streamed": at_a_time,
        "batch": _logits(checked),
        "states": waiting.clean + waiting.branches if streamed else 0,
        "spill": str(spill) if streamed else None,
        "spilled": spilled,
        "readings": readings,
        "reads": _reads(command, checked, len(readings)),
        "loading": loading_seconds(layout, len(readings)),
        "limit": limit,
        "free": free,
    }


def fits(checked: Checked) -> bool:
    """Whether all weights would stay in memory, a GPU's apart."""
    mode, weights = checked.recipe.memory.model, weights_in(checked.layout, checked.recipe.dtype)
    return mode == "resident" or (mode == "auto" and weights <= room_for(free_memory(), _limit(checked)))


def weights_in(layout: Layout, dtype: str) -> int:
    """Bytes of all weights in memory. dtype: of a recipe; auto = as stored, dequantised."""
    return parts_of(layout, dtype).whole


def parts_of(layout: Layout, dtype: str) -> Parts:
    """Bytes of the parts of a checkpoint in memory. dtype: as above."""
    layers: dict[tuple[str, int], int] = {}
    outside = 0
    for name, tensor in layout.checkpoint.tensors.items():
        numbers = numbers_in(name)
        if numbers:
            key = list_of(name), numbers[0]
            layers[key] = layers.get(key, 0) + _bytes(name, tensor, dtype)
        else:
            outside += _bytes(name, tensor, dtype)
    return Parts(outside, tuple(layers.values()))


def _bytes(name: str, tensor: Stored, dtype: str) -> int:
    if tensor.dtype in DEQUANTISED:
        if name.endswith(SCALES):
            return 0
        return tensor.elements * DEQUANTISED[tensor.dtype] * BYTES.get(dtype, 2) // 2
    if name.endswith(SCALES):
        return 0
    return tensor.elements * BYTES[dtype] if dtype in BYTES else tensor.size


def _limit(checked: Checked) -> int | None:
    limit = checked.recipe.memory.limit
    return None if limit is None else parse_size(limit)


def _is_streamed(checked: Checked, parts: Parts, free: int, limit: int | None) -> bool:
    """As experts/memory_choice.py decides, from the sizes of the files."""
    mode, name = checked.recipe.memory.model, checked.model.name
    if mode == "resident" and limit is not None and parts.whole > limit:
        raise ExciseError(limit_too_small(name, parts.whole, limit))
    if mode == "resident" or (mode == "auto" and parts.whole <= room_for(free, limit)):
        return False
    if streamed_bytes(parts.outside, parts.largest) > room_for(free, limit):
        raise ExciseError(too_large(name, parts.outside, parts.largest, free, limit, "this machine"))
    recipe, asked = checked.recipe, mode == "streamed"
    why = f"the weights would take {human(parts.whole)}, and {human(room_for(free, limit))} are for them"
    if recipe.finetune is not None:
        raise ExciseError(not_resident(name, "recovery (finetune)", ASKED if asked else why, asked=asked))
    texts = [recipe.calibration, *([recipe.finetune] if recipe.finetune else [])]
    if any(source.drawn for text in texts for source in text.data):
        raise ExciseError(not_here(name, ASKED if asked else why))
    return True


def _logits(checked: Checked) -> int:
    """Bytes of the logits of the largest batch, in float32."""
    recipe = checked.recipe
    vocabulary = positive_int(text_config(checked.layout.checkpoint.config), "vocab_size") or 0
    parts: list[TextSettings] = [recipe.calibration, recipe.validation]
    if recipe.finetune:
        parts.append(recipe.finetune)
    return max(min(part.batch, part.sequences) * part.length for part in parts) * vocabulary * LOGIT


def _waiting(command: str, checked: Checked, num_layers: int) -> Waiting:
    """Hidden states that wait between layers: of the calibration text, or of all plans together."""
    recipe = checked.recipe
    hidden = positive_int(text_config(checked.layout.checkpoint.config), "hidden_size") or 0
    token = hidden * BYTES.get(recipe.dtype, 2)
    tested = recipe.validation.sequences * recipe.validation.length
    clean = max(recipe.calibration.sequences * recipe.calibration.length, tested)
    windows = sum(stage["windows"] or 0 for stage in stages_of(command, checked) if stage["stage"] == TEST)
    return Waiting(clean * token, windows * recipe.validation.length * token, num_layers)


def _reads(command: str, checked: Checked, readings: int) -> int:
    """Bytes that are read from the model's files, and from the checkpoint that is written."""
    size = checked.layout.checkpoint.size
    reads = size * (1 + readings)  # the fingerprint reads them too
    if command not in ("prune", "finetune"):
        return reads
    plan = trial_plans(checked.shape, checked.budgets[checked.recipe.prune.scope])[0]
    written = pruned_size(checked.layout, plan, dequantise=checked.dequantises)
    return reads + CHECKPOINT_READINGS * written
