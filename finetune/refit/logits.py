"""What a refitted model computes, decoder layer by decoder layer: also where its weights are streamed."""

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy
from experts.decoder import part_of
from experts.sweep.stage import Stage, State
from finetune.refit.passage import inputs_of
from finetune.refit.result import Refit, swapped


@torch.no_grad()
def refitted_logits(anatomy: Anatomy, refit: Refit, windows: Windows) -> Tensor:
    """Logits [1, W, V] of the first window, to compare with a reloaded model's bit by bit.

    Args:
        anatomy: the unpruned model
        refit: of a plan of it
        windows: their first one is read
    """
    stage, left = _RefittedStage(anatomy, refit), None
    inputs = inputs_of(windows.select(np.array([0])), anatomy)
    for span in anatomy.weights.spans():
        with anatomy.weights.loaded(span):
            for layer in span:
                left = stage.run_layer(layer, left, inputs)
    assert isinstance(left, Tensor), "the last layer ends in logits"
    return left


class _RefittedStage(Stage):
    """One decoder layer at a time, pruned and refitted."""

    def __init__(self, anatomy: Anatomy, refit: Refit) -> None:
        super().__init__(anatomy)
        self.anatomy, self.plan = anatomy, refit.plan
        self.changes = {layer.layer: layer for layer in refit.layers}

    def run_layer(
        self, layer: int, state: State | Tensor | None, inputs: dict[str, Any]
    ) -> State | Tensor | None:
        """What leaves a decoder layer; of the last one the logits."""
        assert not isinstance(state, Tensor), "there is a layer above"
        part = part_of(self.anatomy, range(layer, layer + 1))
        with ExitStack() as stack:
            for found in part.anatomy.layers:
                stack.enter_context(restricted(part.anatomy, self.plan.of_layers(part.anatomy.shape.layers)))
                change = self.changes[layer]
                stack.enter_context(swapped(found, self.plan.kept[layer], change.weights, change.others))
            return self.run(part.span, state, inputs)
