"""Merged weights as the source stores them: under its tensor names and in its precision."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from experts.disk.quantised import PLAIN
from experts.disk.shards import Stored, read_header
from experts.errors import ExciseError, naming
from experts.streaming.files import TYPES
from prune.checkpoint.slices import NewTensor

LOADED = "_weight_conversions"  # where transformers keeps the conversion that a model was loaded with


class StoredWeights:
    """How a pruned checkpoint stores the weights of a model in memory.

    Attributes:
        model: the pruned model, or one of the same architecture without weights.
        pieces: the checkpoint's tensors, by name.
        asked: what changed the weights, for messages: a key of the recipe, or an argument.
    """

    def __init__(
        self, model: PreTrainedModel, pieces: Mapping[str, NewTensor], asked: str = "finetune.targets"
    ) -> None:
        self.model, self.pieces, self.asked = model, pieces, asked

    def parts(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """The stored tensors that a weight in memory is made of, by their names in the checkpoint.

        This is transformers' own conversion of the architecture, backwards.
        """
        if name in self.pieces:
            return {name: weight}
        parts = self._reverted(name, weight)
        if not parts.keys() <= self.pieces.keys() and not hasattr(self.model, LOADED):
            # A model that was built and not loaded does not know that its checkpoint wraps it.
            # This is what from_pretrained would have noted.
            setattr(self.model, LOADED, get_model_conversion_mapping(self.model, add_legacy=False))
            parts = self._reverted(name, weight)
        return parts

    def _reverted(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        try:
            return dict(revert_weight_conversion(self.model, {name: weight}))
        except ValueError as error:  # a dequantisation has no way back
            raise ExciseError(
                f"{self.asked}: {name} is stored quantised, so a changed one cannot be written back; "
                "start from an unquantised checkpoint, or leave it as it is"
            ) from error

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Refuse, before any training, weights that could not be written back.

        Raises:
            ExciseError: a weight has no tensor in the checkpoint, one of another shape, or a quantised one.
        """
        for name, weight in weights.items():
            self._dtype(name, self.parts(name, weight.detach()))

    def rounded(self, name: str, weight: Tensor) -> Tensor:
        """The weight in the precision it is stored in: what a reader will get."""
        empty = torch.empty(weight.shape, device="meta")
        return weight.to(self._dtype(name, self.parts(name, empty)))

    def _dtype(self, name: str, parts: Mapping[str, Tensor]) -> torch.dtype:
        """The one precision that the parts of a weight are stored in."""
        dtypes = {self._part_dtype(name, part, tensor) for part, tensor in parts.items()}
        if len(dtypes) != 1:
            raise ExciseError(f"{self.asked}: {name} is stored in {len(dtypes)} precisions; leave it out")
        return dtypes.pop()

    def _part_dtype(self, name: str, part: str, tensor: Tensor) -> torch.dtype:
        piece = self.pieces.get(part)
        if piece is None or piece.shape != tuple(tensor.shape):
            has = "no such tensor"
            if piece is not None:
                has = f"shape {list(piece.shape)}, needs {list(tensor.shape)}"
            raise ExciseError(
                f"{self.asked}: {name} would be written as {part}, and the checkpoint has {has}; leave it out"
            )
        if piece.dtype not in PLAIN:
            raise ExciseError(
                f"{self.asked}: {name} is stored quantised ({part} is {piece.dtype}), so a changed one "
                "cannot be written back; start from an unquantised checkpoint, or leave it as it is"
            )
        return TYPES[piece.dtype]

    def write(self, weights: Mapping[str, Tensor], folder: Path) -> dict[str, Stored]:
        """Save weights as the checkpoint stores them, a file for each weight in memory.

        Returns:
            The stored tensors by their names in the checkpoint.

        Raises:
            ExciseError: as `check`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        stored: dict[str, Stored] = {}
        for number, (name, weight) in enumerate(weights.items()):
            file, parts = folder / f"{number:05d}.safetensors", self.parts(name, weight)
            dtype = self._dtype(name, parts)
            with naming(file):
                save_file(
                    {part: tensor.to("cpu", dtype).contiguous() for part, tensor in parts.items()}, file
                )
            stored |= read_header(file)[0]
        return stored
