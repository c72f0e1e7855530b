"""What a run takes in memory, and how often it reads the files: from names and shapes of tensors alone."""

from experts.disk.configuration import positive_int, text_config
from experts.disk.layout import Layout
from experts.disk.shards import Stored
from experts.disk.tensors import list_of, numbers_in
from experts.units import parse_size
from prune.forecast.result import MemoryJson
from prune.machine import free_memory
from prune.recipe.schema import TextSettings
from prune.session.prepared import Checked

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LOGIT = 4  # bytes; losses are computed in float32
SHARE = 0.8  # of the free memory that weights may take (experts/memory_choice.py)
COPIES = 2.5  # of the largest layer, at most, where layers are read one by one (experts/streaming/sizes.py)
SWEEPS = {"prune": 4, "compare": 3, "audit": 3, "finetune": 0}  # calibration, checks, plans, reloading


def memory(command: str, checked: Checked) -> MemoryJson:
    """Sizes, and whether the weights would stay in memory on a machine without GPUs."""
    recipe, layout = checked.recipe, checked.layout
    free = free_memory()
    limit = free if recipe.memory.limit is None else min(free, parse_size(recipe.memory.limit))
    weights = weights_in(layout, recipe.dtype)
    fits = weights <= SHARE * limit
    resident = recipe.memory.model == "resident" or (recipe.memory.model == "auto" and fits)
    return {
        "model": "resident" if resident else "streamed",
        "weights": weights,
        "streamed": _layer_by_layer(layout, recipe.dtype),
        "batch": _logits(checked),
        "states": 0 if resident else _states(checked),
        "reads": layout.checkpoint.size * (1 if resident else SWEEPS[command]),
        "free": free,
    }


def weights_in(layout: Layout, dtype: str) -> int:
    """Bytes of all weights in memory. dtype: of a recipe; auto = as stored."""
    return sum(_bytes(tensor, dtype) for tensor in layout.checkpoint.tensors.values())


def _layer_by_layer(layout: Layout, dtype: str) -> int:
    """Bytes of what is outside the decoder layers, and of the largest of them while it is read."""
    layers: dict[tuple[str, int], int] = {}
    outside = 0
    for name, tensor in layout.checkpoint.tensors.items():
        numbers = numbers_in(name)
        if numbers:
            key = list_of(name), numbers[0]
            layers[key] = layers.get(key, 0) + _bytes(tensor, dtype)
        else:
            outside += _bytes(tensor, dtype)
    return outside + int(COPIES * max(layers.values(), default=0))


def _bytes(tensor: Stored, dtype: str) -> int:
    return tensor.elements * BYTES[dtype] if dtype in BYTES else tensor.size


def _logits(checked: Checked) -> int:
    """Bytes of the logits of the largest batch, in float32."""
    recipe = checked.recipe
    vocabulary = positive_int(text_config(checked.layout.checkpoint.config), "vocab_size") or 0
    parts: list[TextSettings] = [recipe.calibration, recipe.validation]
    if recipe.finetune:
        parts.append(recipe.finetune)
    return max(min(part.batch, part.sequences) * part.length for part in parts) * vocabulary * LOGIT


def _states(checked: Checked) -> int:
    """Bytes of hidden states that wait between layers: of the calibration text, or of all plans together."""
    recipe = checked.recipe
    hidden = positive_int(text_config(checked.layout.checkpoint.config), "hidden_size") or 0
    plans = 2 + 2 * len(checked.criteria) + recipe.validation.random_plans
    tested = plans * recipe.validation.sequences * recipe.validation.length
    tokens = max(recipe.calibration.sequences * recipe.calibration.length, tested)
    return tokens * hidden * BYTES.get(recipe.dtype, 2)
