"""Refitted weights as the new checkpoint stores them, and on request the matrices beside them dequantised."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experts.ablation import check_untouched
from experts.anatomy import MoELayer
from experts.disk.quantised import method_of, quantised_expert
from experts.disk.shards import Stored
from experts.errors import ExciseError
from experts.loading import skeleton
from experts.model import Model
from finetune.refit.provenance import refit_in_words, refit_provenance
from finetune.refit.result import Refit, weights_by_name
from prune.checkpoint.provenance import digest_of
from prune.checkpoint.refit_storage import check_storable
from prune.checkpoint.slices import by_name, slice_layout
from prune.checkpoint.stored_weights import StoredWeights
from prune.checkpoint.write import TrainedWeights


def refitted_weights(model: Model, refit: Refit, folder: Path, *, dequantise: bool = False) -> TrainedWeights:
    """Write the refitted tensors as the checkpoint stores them.

    Args:
        model: the unpruned one
        refit: of its plan
        folder: where the tensors go; it has to stay until they are exported
        dequantise: where experts are stored quantised, all matrices of the kept ones are written in bfloat16

    Raises:
        ExciseError: experts are stored quantised and not to be dequantised, or the model computes in another
            precision than bfloat16.
    """
    check_storable(model.layout, dequantise=dequantise)
    dequantise = dequantise and quantised_expert(model.layout) is not None
    pieces = by_name(slice_layout(model.layout, refit.plan, dequantise=dequantise))
    storage = StoredWeights(unquantised_network(model), pieces, "refit")
    changed = storage.write(weights_by_name(model.anatomy, refit), folder)
    if dequantise:
        changed |= _dequantised(model, refit, storage, changed, folder / "dequantised")
    digests = {name: digest_of(stored) for name, stored in changed.items()}
    provenance = refit_provenance(refit, digests, dequantised=dequantise)
    return TrainedWeights(changed, provenance, refit_in_words(provenance["refit"]), dequantise)


def unquantised_network(model: Model) -> PreTrainedModel:
    """The model's network, or one of its kind without weights that knows nothing of its quantisation.

    What was dequantised on loading cannot be led back to the names of the checkpoint.
    """
    if not method_of(model.layout.checkpoint.config):
        return model.network
    return skeleton(model.folder, model.trust_remote_code)


@torch.no_grad()
def _dequantised(
    model: Model, refit: Refit, storage: StoredWeights, known: Mapping[str, Stored], folder: Path
) -> dict[str, Stored]:
    """Write what is quantised on disk and was not changed, layer by layer, as it is in memory."""
    check_untouched(model.anatomy)
    missing = {name for name, piece in storage.pieces.items() if piece.dtype != piece.source.dtype} - {*known}
    names = {module: name for name, module in model.network.named_modules()}
    layers = {layer.index: layer for layer in model.anatomy.layers}
    written: dict[str, Stored] = {}
    for span in model.anatomy.weights.spans():
        with model.anatomy.weights.loaded(span):
            for index in span:
                if index in layers:
                    kept, place = refit.plan.kept[index], folder / str(index)
                    found = _missing(layers[index], names[layers[index].experts], kept, storage, missing)
                    written |= storage.write(dict(found), place)
    return written


def _missing(
    layer: MoELayer, experts: str, kept: tuple[int, ...], storage: StoredWeights, missing: set[str]
) -> Iterator[tuple[str, Tensor]]:
    """Matrices of a layer that are to be written, by their names in the network [K, …]."""
    for name in layer.weights:
        matrices = layer.experts.get_parameter(name)
        if matrices.ndim < 3:
            continue
        empty = torch.empty((len(kept), *matrices.shape[1:]), device="meta")
        if missing.isdisjoint(storage.parts(f"{experts}.{name}", empty)):
            continue
        if matrices.dtype != torch.bfloat16:
            raise ExciseError(
                f"refit: the model computes in {matrices.dtype}, and its experts would be written in "
                "bfloat16; load it with dtype: bfloat16"
            )
        yield f"{experts}.{name}", matrices[list(kept)]
