"""Room on disk that refitted weights take beside the checkpoint, until it is proven: from headers alone."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from experts.disk.layout import Layout
from experts.plan import Plan
from prune.checkpoint.slices import NewTensor, by_name, slice_layout
from prune.recipe.schema import Recipe

FOLDER = "refit"  # of a run: refitted weights of plans
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number in memory


def refit_room(layout: Layout, plan: Plan, recipe: Recipe, *, dequantise: bool) -> int:
    """Bytes of the written plan's refit, and of the tensors that the checkpoint takes from it.

    A refit is kept as the model computes, the tensors are as the checkpoint stores them.

    Args:
        layout: of the source
        plan: like the one that is written
        recipe: with or without a refit
        dequantise: all matrices of the experts are written, in bfloat16
    """
    if recipe.refit is None:
        return 0
    pieces = {
        piece.source.name: piece
        for piece in by_name(slice_layout(layout, plan, dequantise=dequantise)).values()
    }
    kept = written = 0
    for matrices in _matrices(layout, pieces):
        down = min(matrices, key=lambda piece: math.prod(piece.shape))  # no wider than what enters it
        changed = matrices if recipe.refit.local else [down]
        kept += sum(_in_memory(piece, recipe.dtype) for piece in changed)
        written += sum(piece.size for piece in (matrices if dequantise else changed))
    for router in _routers(layout, pieces) if recipe.refit.local else ():
        kept += _in_memory(router, recipe.dtype)
        written += router.size
    return kept + written


def refits_there(run: Path) -> int:
    """Bytes of refits that an interrupted run left: they take no more room."""
    return sum(file.stat().st_size for file in (run / FOLDER).glob("*.safetensors"))


def _matrices(layout: Layout, pieces: Mapping[str, NewTensor]) -> Iterator[list[NewTensor]]:
    """The matrices of each kept expert that is stored alone, or of all experts of a layer together.

    Args:
        layout: of the source
        pieces: what is left of its tensors, by their names there
    """
    for block in layout.blocks.values():
        for tensors in (*block.single.values(), block.fused):
            found = [pieces[tensor.name] for tensor in tensors if tensor.name in pieces]
            axes = 3 if tensors is block.fused else 2
            if matrices := [piece for piece in found if len(piece.shape) == axes]:
                yield matrices


def _routers(layout: Layout, pieces: Mapping[str, NewTensor]) -> Iterator[NewTensor]:
    """The rows of the routers. pieces: as above."""
    for block in layout.blocks.values():
        found = [pieces[tensor.name] for tensor in block.router if tensor.name in pieces]
        yield from (piece for piece in found if len(piece.shape) == 2 and piece.shape[0] > 1)


def _in_memory(piece: NewTensor, dtype: str) -> int:
    """Bytes of a matrix in the precision that the model computes in."""
    return math.prod(piece.shape) * WIDTHS[dtype] if dtype in WIDTHS else piece.size
