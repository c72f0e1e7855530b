"""Merged weights as the source stores them: its tensor names, one or several for a fused weight, and its precision."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from experts.disk.shards import Stored, read_header
from experts.errors import ExciseError, naming
from prune.checkpoint.slices import Piece

LOADED = "_weight_conversions"  # where transformers keeps the conversion that a model was loaded with
FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Storage:
    """How a pruned checkpoint stores the weights of a model in memory. pieces: its tensors by name."""

    def __init__(self, model: PreTrainedModel, pieces: Mapping[str, Piece]) -> None:
        self.model, self.pieces = model, pieces

    def parts(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """The stored tensors that a weight in memory is made of: transformers' own conversion of the architecture, backwards."""
        if name in self.pieces:
            return {name: weight}
        found = dict(revert_weight_conversion(self.model, {name: weight}))
        if not found.keys() <= self.pieces.keys() and not hasattr(self.model, LOADED):
            # A model that was built and not loaded does not know that its checkpoint wraps it: what from_pretrained would have noted.
            setattr(self.model, LOADED, get_model_conversion_mapping(self.model, add_legacy=False))
            found = dict(revert_weight_conversion(self.model, {name: weight}))
        return found

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Refuses, before any training, weights that could not be written back: unknown names, other shapes, quantised formats."""
        for name, weight in weights.items():
            self._dtype(name, self.parts(name, weight.detach()))

    def rounded(self, name: str, weight: Tensor) -> Tensor:
        """The weight in the precision it is stored in: what a reader will get."""
        empty = torch.empty(weight.shape, device="meta")
        return weight.to(self._dtype(name, self.parts(name, empty)))

    def _dtype(self, name: str, parts: Mapping[str, Tensor]) -> torch.dtype:
        found = set()
        for part, tensor in parts.items():
            piece = self.pieces.get(part)
            if piece is None or piece.shape != tuple(tensor.shape):
                has = (
                    "no such tensor"
                    if piece is None
                    else f"shape {list(piece.shape)}, needs {list(tensor.shape)}"
                )
                raise ExciseError(
                    f"finetune.targets: {name} would be written as {part}, and the checkpoint has {has}; leave it out"
                )
            if piece.dtype not in FLOATS:
                raise ExciseError(
                    f"finetune.targets: {name} is stored quantised ({part} is {piece.dtype}), so a trained one cannot be written back; "
                    "leave it out, or start from an unquantised checkpoint"
                )
            found.add(FLOATS[piece.dtype])
        if len(found) != 1:
            raise ExciseError(f"finetune.targets: {name} is stored in {len(found)} precisions; leave it out")
        return found.pop()

    def write(self, weights: Mapping[str, Tensor], folder: Path) -> dict[str, Stored]:
        """Saves the weights as the checkpoint stores them, a file for each weight in memory; gives the stored tensors by name."""
        folder.mkdir(parents=True, exist_ok=True)
        stored: dict[str, Stored] = {}
        for number, (name, weight) in enumerate(weights.items()):
            parts = self.parts(name, weight)
            file, dtype = folder / f"{number:05d}.safetensors", self._dtype(name, parts)
            with naming(file):
                save_file(
                    {part: tensor.to("cpu", dtype).contiguous() for part, tensor in parts.items()}, file
                )
            stored |= read_header(file)[0]
        return stored
