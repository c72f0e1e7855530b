"""The precision in which a checkpoint stores what a refit changes: what is judged is what will be read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from experts.disk.blocks import Block
from experts.disk.layout import Layout
from experts.disk.shards import Stored
from finetune.distill.block import ROUTER

FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


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
        layer: Precision(_one(_experts(block)), _one(block.router)) for layer, block in layout.blocks.items()
    }


def _experts(block: Block) -> Iterable[Stored]:
    return chain(*block.single.values(), block.fused)


def _one(tensors: Iterable[Stored]) -> torch.dtype | None:
    """What all of them are stored in."""
    names = {tensor.dtype for tensor in tensors}
    return FLOATS.get(names.pop()) if len(names) == 1 else None
