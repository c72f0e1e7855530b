"""The precision in which a checkpoint stores what a refit changes: what is judged is what will be read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.disk.layout import Layout
from experts.disk.quantised import PLAIN
from experts.disk.shards import Stored
from experts.streaming.files import TYPES
from finetune.distill.block import ROUTER


@dataclass(frozen=True)
class Precision:
    """Of one layer. None: its tensors have several, or are quantised.

    Attributes:
        experts: of its experts' tensors
        router: of its router's
    """

    experts: torch.dtype | None
    router: torch.dtype | None

    def rounded(self, name: str, weights: Tensor) -> Tensor:
        """Weights as a reader of the checkpoint will get them, in the precision they came in.

        Args:
            name: of a parameter of the experts, or ROUTER
            weights: of any shape
        """
        stored = self.router if name == ROUTER else self.experts
        return weights if stored is None else weights.to(stored).to(weights.dtype)


def precisions_of(layout: Layout) -> Mapping[int, Precision]:
    """The precision of every MoE layer, by its decoder layer [L]."""
    return {
        layer: Precision(_one(block.experts), _one(block.router)) for layer, block in layout.blocks.items()
    }


def _one(tensors: Iterable[Stored]) -> torch.dtype | None:
    """What all of them are stored in."""
    names = {tensor.dtype for tensor in tensors}
    return TYPES[names.pop()] if len(names) == 1 and names <= PLAIN else None
