"""Whether windows fit a model: the positions it was made for, and its vocabulary. No torch."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from experts.disk.configuration import positive_int, text_config
from experts.disk.tensors import in_tower
from experts.errors import ExciseError

KEYS = ("max_position_embeddings", "model_max_length", "n_positions", "max_seq_len", "n_ctx")
LEARNED = re.compile(r"(?:^|\.)(?:wpe|embed_positions|position_embeddings?|pos_embed(?:ding)?s?)\.weight$")


def most_positions(config: Mapping[str, Any]) -> int | None:
    """The length of text a configuration names; rope scaling is counted in it already, or is not."""
    text = text_config(config)
    return next((number for key in KEYS if (number := positive_int(text, key))), None)


def learned_positions(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Rows of a table with an embedding for every position, None = no table. shapes: of all tensors."""
    tables = (shape for name, shape in shapes.items() if LEARNED.search(name) and not in_tower(name))
    return next((int(shape[0]) for shape in tables if len(shape) == 2), None)


def context_note(length: int, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> str:
    """What to say of windows of `length` tokens; empty where they fit.

    config, shapes: of the checkpoint. Raises ExciseError where the model has no such positions.
    """
    most, learned = most_positions(config), learned_positions(shapes)
    if learned is not None and length > (least := min(learned, most or learned)):
        what = f"a window of {length} tokens is longer than the {least} positions the model has"
        raise ExciseError(f"{what}; take shorter windows")
    if most is not None and length > most:
        return f"a window of {length} tokens is longer than the {most} positions the model was made for"
    return ""


def check_vocabulary(largest: int, config: Mapping[str, Any]) -> None:
    """Refuses text whose largest token id the model has no embedding for: the tokenizer is another model's."""
    size = positive_int(text_config(config), "vocab_size")
    if size is not None and largest >= size:
        raise ExciseError(
            f"the tokenizer gives token {largest}, and config.json says vocab_size = {size}: it belongs to another model; "
            "put the tokenizer files of this one into its folder"
        )
