"""The refit of all layers, upwards, each with the weights of the layers below it already refitted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from criteria.text.windows import Windows
from experts.anatomy import Anatomy
from experts.memory import free_bytes
from experts.plan import whole_plan
from finetune.refit.blocks import Blocks
from finetune.refit.equations import Equations
from finetune.refit.held_out import HeldOut
from finetune.refit.joint import Joint
from finetune.refit.layer import LayerRefit
from finetune.refit.passage import CLEAN, PRUNED, Passage
from finetune.refit.request import Request
from finetune.refit.result import SCALE, RefittedLayer, swapped

SHARE = 0.5  # of the free memory that the equations of a layer may take to be solved at once


@dataclass(frozen=True)
class Traveller:
    """One plan on its way through the layers.

    Attributes:
        passage: the windows that it is refitted on
        take: gets every refitted layer, upwards
        held_out: windows that pass through the refitted layers, to be measured; None = none
    """

    passage: Passage
    take: Callable[[RefittedLayer], None]
    held_out: HeldOut | None = None


@torch.no_grad()
def refit_layers(travellers: Sequence[Traveller], request: Request) -> None:
    """Refit all MoE layers, one after the other; the weights of a layer are read once for all plans.

    Args:
        travellers: plans of one model, in front of the lowest layer
        request: how

    Raises:
        ExciseError: a layer cannot be refitted.
    """
    anatomy = travellers[0].passage.anatomy
    row_of = {layer.index: row for row, layer in enumerate(anatomy.layers)}
    highest = anatomy.layers[-1].index
    measured = [one.held_out for one in travellers if one.held_out is not None]
    total = len(anatomy.layers) * len(travellers)
    with tqdm(total=total, desc="refit", unit="layer", delay=2, leave=False) as bar:
        for span in anatomy.weights.spans():
            if span.start > highest and not measured:
                break
            with anatomy.weights.loaded(span):
                for layer in span:
                    if layer in row_of:
                        for one in travellers:
                            _refit(one, row_of[layer], request, last=layer == highest)
                            bar.update(1)
                    elif layer < highest:
                        _pass(travellers, layer)
                    else:
                        _end(measured, layer)


@torch.no_grad()
def check_refittable(anatomy: Anatomy, windows: Windows) -> None:
    """Refuse a model that cannot be refitted, by what its layers do with one window.

    Raises:
        ExciseError: inner activations of a layer cannot be seen, or its experts' sum does not simply add to
            the residual stream.
    """
    plan = whole_plan(anatomy.shape.num_experts, anatomy.shape.layers)
    passage = Passage(anatomy, plan, windows.select(np.array([0])), 1)
    row_of = {layer.index: row for row, layer in enumerate(anatomy.layers)}
    for span in anatomy.weights.spans():
        if span.start > anatomy.layers[-1].index:
            return
        with anatomy.weights.loaded(span):
            for layer in span:
                if layer in row_of:
                    LayerRefit(passage, row_of[layer], None, 0, _equations).factor()
                passage.leaving(layer, PRUNED, 0, go=True)


def layer_refit(passage: Passage, row: int, request: Request) -> LayerRefit:
    """One layer as a request asks for it. row: its place among the L MoE layers."""
    return LayerRefit(
        passage,
        row,
        request.ridge,
        0 if request.form == SCALE else request.fewest,
        _equations,
        request.local,
        request.form,
        request.precisions.get(passage.anatomy.layers[row].index),
    )


def _refit(one: Traveller, row: int, request: Request, *, last: bool) -> None:
    """Refit a layer of one plan."""
    at_work = layer_refit(one.passage, row, request)
    found = at_work.run(last=last)
    one.take(found)
    if one.held_out is not None:
        with swapped(at_work.layer, at_work.kept, found.weights, found.others):
            one.held_out.pass_through(found.layer)


def _pass(travellers: Sequence[Traveller], layer: int) -> None:
    """Take all batches through a layer without experts."""
    for one in travellers:
        for batch in range(len(one.passage)):
            for way in (CLEAN, PRUNED):
                one.passage.leaving(layer, way, batch, go=True)
    _end([one.held_out for one in travellers if one.held_out is not None], layer)


def _end(measured: Sequence[HeldOut], layer: int) -> None:
    """Take what is measured through a layer without experts; nothing else needs those above all experts."""
    for held_out in measured:
        held_out.pass_through(layer)


def _equations(num_experts: int, inner: int, width: int, device: torch.device) -> Equations:
    """Solved at once where that fits into memory, else expert by expert."""
    if Joint.bytes_for(num_experts, inner, width) <= SHARE * free_bytes(device):
        return Joint(num_experts, inner, width, device)
    return Blocks(num_experts, inner, width, device)
