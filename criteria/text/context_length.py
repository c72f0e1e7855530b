"""Whether windows fit a model: the positions it was made for, and its vocabulary."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from experts.disk.configuration import positive_int, text_config
from experts.disk.tensors import in_tower
from experts.errors import ExciseError

# Keys of config.json for the number of positions, in the order in which they are asked.
POSITION_KEYS = ("max_position_embeddings", "model_max_length", "n_positions", "max_seq_len", "n_ctx")
POSITION_TABLE = re.compile(
    r"(?:^|\.)(?:wpe|embed_positions|position_embeddings?|pos_embed(?:ding)?s?)\.weight$"
)


def most_positions(config: Mapping[str, Any]) -> int | None:
    """Return the number of positions that config.json names; None if it names none.

    Some models include the factor of rope scaling in this number, others do not.
    """
    text = text_config(config)
    for key in POSITION_KEYS:
        if number := positive_int(text, key):
            return number
    return None


def learned_positions(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Return the number of positions that have a learned embedding; None for a model without such a table.

    Args:
        shapes: of all tensors of the checkpoint, by name
    """
    for name, shape in shapes.items():
        if POSITION_TABLE.search(name) and not in_tower(name) and len(shape) == 2:
            return int(shape[0])
    return None


def context_note(length: int, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> str:
    """Compare the length of windows with the positions of a model.

    Args:
        length: W, tokens per window
        config: content of config.json
        shapes: of all tensors of the checkpoint, by name

    Returns:
        A note for the user where windows are longer than the model was made for; empty where they fit.

    Raises:
        ExciseError: the model has no embeddings for so many positions.
    """
    most = most_positions(config)
    learned = learned_positions(shapes)
    if learned is not None:
        available = min(learned, most or learned)
        if length > available:
            asked = f"a window of {length} tokens is longer than the {available} positions the model has"
            raise ExciseError(f"{asked}; take shorter windows")
    if most is not None and length > most:
        return f"a window of {length} tokens is longer than the {most} positions the model was made for"
    return ""


def check_vocabulary(largest: int, config: Mapping[str, Any]) -> None:
    """Refuse text of another model's tokenizer: its largest token id has no embedding.

    Args:
        largest: the largest token id of the text
        config: content of config.json

    Raises:
        ExciseError: the id is outside the vocabulary.
    """
    size = positive_int(text_config(config), "vocab_size")
    if size is not None and largest >= size:
        raise ExciseError(
            f"the tokenizer gives token {largest}, and config.json says vocab_size = {size}: "
            "it belongs to another model; put the tokenizer files of this one into its folder"
        )
