"""Keys and values of the clean windows, for copies of their tokens that come later."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache


class Prefix(Cache):
    """Keys and values of the unmodified windows.

    The first forward writes them; later ones read them, for tokens that come after. transformers' own caches
    crop sliding windows and grow with every call; this one keeps every position and never changes.

    Attributes:
        kept: decoder layer -> keys and values of the windows
        length: positions that are kept; 0 while the first forward runs
    """

    is_sliding: list[bool] = []  # noqa: RUF012 - an instance attribute of the base class, asked for by the masks
    is_compileable = False

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix and the new ones; in the first forward these become the prefix."""
        if not self.length:
            self.kept[layer_idx] = key_states, value_states
            return key_states, value_states
        keys, values = self.kept[layer_idx]
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - every layer holds every position
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:  # noqa: ARG002
        return self.length + query_length, 0
