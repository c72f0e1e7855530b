"""Whether windows fit the positions a model was made for. No torch."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from experts.configuration import in_tower, text_config, whole
from experts.errors import ExciseError

KEYS = ("max_position_embeddings", "model_max_length", "n_positions", "max_seq_len", "n_ctx")
LEARNED = re.compile(r"(?:^|\.)(?:wpe|embed_positions|position_embeddings?|pos_embed(?:ding)?s?)\.weight$")


def most_positions(config: Mapping[str, Any]) -> int | None:
    """The length of text a configuration names; rope scaling is counted in it already, or is not."""
    text = text_config(config)
    return next((number for key in KEYS if (number := whole(text, key))), None)


def learned_positions(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Rows of a table with a learned embedding for every position; None where positions are computed. shapes: of all tensors."""
    tables = (shape for name, shape in shapes.items() if LEARNED.search(name) and len(shape) == 2 and not in_tower(name))
    return next((int(shape[0]) for shape in tables), None)


def context_note(length: int, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> str:
    """What to say of windows of `length` tokens; empty where they fit. Raises ExciseError where the model has no such positions."""
    most, learned = most_positions(config), learned_positions(shapes)
    if learned is not None and length > (least := min(learned, most or learned)):
        raise ExciseError(f"a window of {length} tokens is longer than the {least} positions the model has; take shorter windows")
    if most is not None and length > most:
        return f"a window of {length} tokens is longer than the {most} positions the model was made for"
    return ""
