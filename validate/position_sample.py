"""Which positions a token-level audit reads: all with a next token, or a sample of every layer."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from criteria.text.windows import Windows
from experts.arrays import Marks
from experts.errors import ExciseError


def sample_positions(
    windows: Windows,
    num_layers: int,
    rows: Sequence[int],
    count: int | Literal["all"],
    seed: int,
) -> Marks:
    """Marks of the positions that are read [L, N, W − 1].

    Args:
        windows: the text, N windows of W tokens
        num_layers: L
        rows: places of the audited layers among the L MoE layers
        count: positions per layer, drawn anew for every layer; or all
        seed: of the draw

    Raises:
        ExciseError: the text has fewer positions.
    """
    readable = windows.readable
    chosen = np.zeros((num_layers, *readable.shape), dtype=bool)
    if count == "all":
        chosen[list(rows)] = readable
        return chosen
    available = int(readable.sum())
    if count > available:
        raise ExciseError(f"positions is {count}, the validation text has {available}; lower it or add text")
    for row in rows:
        rng = np.random.default_rng([seed, row])
        chosen[row].flat[rng.choice(np.flatnonzero(readable), count, replace=False)] = True
    return chosen
