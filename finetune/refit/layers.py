"""The refit of all layers, upwards, each with the weights of the layers below it already refitted."""

import torch
from tqdm import tqdm

from experts.memory import free_bytes
from finetune.distill.settings import Local
from finetune.refit.blocks import Blocks
from finetune.refit.equations import Equations
from finetune.refit.joint import Joint
from finetune.refit.layer import LayerRefit
from finetune.refit.passage import CLEAN, PRUNED, Passage
from finetune.refit.result import FULL, RefittedLayer

SHARE = 0.25  # of the free memory that the equations of a layer may take to be solved at once


@torch.no_grad()
def refitted_layers(
    passage: Passage, ridge: float | None, fewest: int, local: Local | None = None, form: str = FULL
) -> list[RefittedLayer]:
    """Refit all MoE layers, one after the other.

    Args:
        passage: the windows, in front of the lowest layer
        ridge: λ; None = chosen in every layer
        fewest: tokens below which an expert stays as it is
        local: how every layer is trained afterwards; None = it is not
        form: FULL or SCALE

    Raises:
        ExciseError: a layer cannot be refitted.
    """
    anatomy, found = passage.anatomy, list[RefittedLayer]()
    spans = anatomy.weights.spans()
    row_of = {layer.index: row for row, layer in enumerate(anatomy.layers)}
    highest = anatomy.layers[-1].index
    with tqdm(total=len(anatomy.layers), desc="refit", unit="layer", delay=2, leave=False) as bar:
        for span in spans:
            if span.start > highest:
                break
            with anatomy.weights.loaded(span):
                for layer in span[: highest + 1 - span.start]:
                    if layer not in row_of:
                        _pass(passage, layer)
                        continue
                    at_work = LayerRefit(passage, row_of[layer], ridge, fewest, _equations, local, form)
                    found.append(at_work.run(last=layer == highest))
                    bar.update(1)
    return found


def _pass(passage: Passage, layer: int) -> None:
    """Take all batches through a layer without experts."""
    for batch in range(len(passage)):
        for way in (CLEAN, PRUNED):
            passage.leaving(layer, way, batch, go=True)


def _equations(num_experts: int, inner: int, width: int, device: torch.device) -> Equations:
    """Solved at once where that fits into memory, else expert by expert."""
    if Joint.bytes_for(num_experts, inner, width) <= SHARE * free_bytes(device):
        return Joint(num_experts, inner, width, device)
    return Blocks(num_experts, inner, width, device)
