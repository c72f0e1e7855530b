"""Windows on their way through the layers, twice: as the whole model and as the pruned one compute them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy
from experts.decoder import Part, decoder_layers, part_of
from experts.plan import Plan
from experts.seam import Handler, intercepted
from experts.sweep.stage import Stage, State

CLEAN, PRUNED = "clean", "pruned"


class Passage:
    """Batches of windows between two decoder layers.

    Args:
        anatomy: the whole model
        plan: what the pruned one keeps
        windows: N windows of W tokens
        batch: windows per forward

    Attributes:
        windows: N windows of W tokens
        readable: which tokens are no padding, of every batch [B·W]
    """

    def __init__(self, anatomy: Anatomy, plan: Plan, windows: Windows, batch: int) -> None:
        self.anatomy, self.plan, self.windows, self.stage = anatomy, plan, windows, Stage(anatomy)
        starts = range(0, len(windows), batch)
        parts = [windows.select(np.arange(start, min(start + batch, len(windows)))) for start in starts]
        self._inputs = [_inputs_of(part, anatomy) for part in parts]
        self.readable = [torch.from_numpy(part.mask.reshape(-1)).to(anatomy.device) for part in parts]
        self._states: dict[tuple[str, int], State | None] = {}

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._inputs)

    def leaving(
        self, layer: int, way: str, batch: int, handler: Handler | None = None, *, go: bool
    ) -> Tensor:
        """Compute one decoder layer.

        Args:
            layer: its number; what enters it is there
            way: CLEAN or PRUNED
            batch: number of the batch
            handler: sees or edits the call of its experts
            go: whether the batch goes on to the next layer

        Returns:
            The residual stream after the layer [B·W, H].
        """
        part = part_of(self.anatomy, range(layer, layer + 1))
        with _seen(decoder_layers(self.anatomy)[layer]) as outputs, self._intervened(part, way, handler):
            state = self.stage.run(part.span, self._states.get((way, batch)), self._inputs[batch], head=False)
        if go:
            self._states[way, batch] = state if isinstance(state, dict) else None
        stream = outputs.pop()
        return stream.reshape(-1, stream.shape[-1])

    @contextmanager
    def _intervened(self, part: Part, way: str, handler: Handler | None) -> Iterator[None]:
        watched = nullcontext() if handler is None else intercepted(part.anatomy, handler)
        with watched:  # below the restriction: it sees the ids of the whole model
            if way == CLEAN or not part.rows:
                yield
                return
            with restricted(part.anatomy, self.plan.of_layers(part.anatomy.shape.layers)):
                yield


def _inputs_of(windows: Windows, anatomy: Anatomy) -> dict[str, Any]:
    mask = windows.padding(anatomy.device)
    padding = {} if mask is None else {"attention_mask": mask}
    return {"input_ids": windows.tensor(anatomy.device), "use_cache": False, **padding}


@contextmanager
def _seen(layer: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Collect the stream that a decoder layer returns."""
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(
        lambda _, __, output: outputs.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        yield outputs
    finally:
        hook.remove()
