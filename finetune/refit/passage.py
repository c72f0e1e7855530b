"""Windows on their way through the layers, twice: as the whole model and as the pruned one compute them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from criteria.text.halves import in_halves
from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy
from experts.arrays import Ids
from experts.decoder import Part, decoder_layers, part_of
from experts.plan import Plan, whole_plan
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
        clean: what is the same for every plan; None = it is computed for this one alone
        entering: what enters the next layer of the pruned model, by batch; None = the embeddings do

    Attributes:
        windows: N windows of W tokens
        readable: which tokens are no padding, of every batch [B·W]
        folds: half of the text that every batch is of, 0 or 1; λ is chosen on each by the other
    """

    def __init__(
        self,
        anatomy: Anatomy,
        plan: Plan,
        windows: Windows,
        batch: int,
        clean: "CleanPassage | None" = None,
        entering: Mapping[int, State | None] | None = None,
    ) -> None:
        self.anatomy, self.plan, self.windows, self.clean = anatomy, plan, windows, clean
        self.stage = Stage(anatomy)
        batches = _batches(windows, batch)
        self.folds = [fold for fold, _ in batches]
        parts = [windows.select(rows) for _, rows in batches]
        self._inputs = [inputs_of(part, anatomy) for part in parts]
        self.readable = [torch.from_numpy(part.mask.reshape(-1)).to(anatomy.device) for part in parts]
        self._states: dict[tuple[str, int], State | None] = {}
        self._states.update({(PRUNED, number): state for number, state in (entering or {}).items()})

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._inputs)

    def entering(self, way: str) -> dict[int, State | None]:
        """What enters the next layer, by batch; None = what the embeddings make of the windows."""
        return {batch: self._states.get((way, batch)) for batch in range(len(self))}

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
        if way == CLEAN and self.clean is not None:
            return self.clean.left(layer, batch)
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


class CleanPassage:
    """The whole model's way, once for all plans: what left the last layer is kept [N·W, H].

    Args:
        anatomy: the whole model
        windows: N windows of W tokens
        batch: windows per forward
    """

    def __init__(self, anatomy: Anatomy, windows: Windows, batch: int) -> None:
        plan = whole_plan(anatomy.shape.num_experts, anatomy.shape.layers)
        self._passage = Passage(anatomy, plan, windows, batch)
        self._layer, self._left = -1, dict[int, Tensor]()

    @property
    def entering(self) -> dict[int, State | None]:
        """What enters the layer that is asked for next, by batch."""
        return self._passage.entering(CLEAN)

    def go(self, layer: int) -> None:
        """Take all batches through a decoder layer."""
        for batch in range(len(self._passage)):
            self.left(layer, batch)

    def left(self, layer: int, batch: int) -> Tensor:
        """The residual stream after a decoder layer [B·W, H]; layers are asked for in their order."""
        if layer != self._layer:
            self._layer, self._left = layer, {}
        if batch not in self._left:
            self._left[batch] = self._passage.leaving(layer, CLEAN, batch, go=True)
        return self._left[batch]


def _batches(windows: Windows, size: int) -> list[tuple[int, Ids]]:
    """(half, its windows), batch by batch: a batch is of one half, whatever its size."""
    half = in_halves(windows)
    found = []
    for fold in (0, 1):
        rows = np.flatnonzero(half == fold)
        found += [(fold, rows[start : start + size]) for start in range(0, len(rows), size)]
    return found


def inputs_of(windows: Windows, anatomy: Anatomy) -> dict[str, Any]:
    """Arguments of the model's forward."""
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
