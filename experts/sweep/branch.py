"""Branches: what a model computes from some layer on when something in it is changed.

A branch is born in a layer with experts, from what the clean forward left there, and goes on through the
layers above; or it is a whole forward of its own. Copies of single tokens (position scope) are a branch, too:
they read the clean keys and values.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from experts.decoder import Part
from experts.errors import ExciseError
from experts.sweep.record import CleanForward


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A changed model from one layer on. Subclasses say what is changed, and what becomes of the logits.

    Attributes:
        row: the MoE layer that it is born in; None = a whole forward of its own
        position: positions of a single window that it is made of [C]; None = the whole windows
        begins_at_experts: whether what runs before the experts of its first layer is not run again
        is_reference: whether branches of the same batch that arrive later need what it leaves: it then
            arrives in every pass over the layers
    """

    row: int | None
    position: Tensor | None = None
    begins_at_experts: bool = True
    is_reference: bool = False

    def change(self, part: Part) -> AbstractContextManager[None]:
        """The intervention on some decoder layers."""
        raise NotImplementedError

    def arrived(self, clean: CleanForward, logits: Tensor) -> None:
        """The last layer has run. logits: [B, W, V], of copies [1, C, V]."""
        raise NotImplementedError

    def forgives(self, error: ExciseError) -> bool:  # noqa: ARG002
        """Whether the sweep goes on without the branch when it cannot run on this model."""
        return False

    def halves(self) -> "tuple[Branch, Branch] | None":
        """Two branches that do the same with half the memory; None where that cannot be."""
        return None

    def inputs(self, clean: CleanForward) -> dict[str, Any]:
        """Of the model's forward."""
        if self.position is None:
            without_cache = {name: value for name, value in clean.inputs.items() if name != "past_key_values"}
            return without_cache | {"use_cache": False}
        ids = clean.tokens[0, self.position]
        return clean.inputs | {"input_ids": ids[None], "position_ids": self.position[None]}
