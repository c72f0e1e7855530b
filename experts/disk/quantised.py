"""Experts that are stored quantised: in which format, and which plain matrices they stand for.

Two formats are dequantised when they are loaded (experts/dequantise.py):

- fp8: a matrix in FP8 and its scales, `down_proj.weight` and `down_proj.weight_scale_inv`;
- mxfp4, of gpt-oss: `down_proj_blocks` [E, out, in / 32, 16] with two numbers a byte, and `down_proj_scales`,
  which together are `down_proj` [E, in, out].
"""

import itertools
from collections.abc import Mapping
from typing import Any

from experts.disk.configuration import text_config
from experts.disk.layout import Layout
from experts.disk.shards import Stored
from experts.errors import ExciseError

METHODS = ("fp8", "mxfp4")
PLAIN = frozenset({"F64", "F32", "BF16", "F16"})
FP8 = frozenset({"F8_E4M3", "F8_E5M2"})
PACKED = frozenset({*FP8, "F8_E8M0", "U8", "I8", "F4"})  # of whatever is quantised in these formats
BLOCKS, SCALES = "_blocks", ("_scale_inv", "_scales")


def method_of(config: Mapping[str, Any]) -> str:
    """The quantisation that config.json names; empty where it names none."""
    for table in (config, text_config(config)):
        settings = table.get("quantization_config")
        if isinstance(settings, Mapping):
            return str(settings.get("quant_method", "without a quant_method"))
    return ""


def quantised_expert(layout: Layout) -> Stored | None:
    """A tensor of an expert that is stored quantised; None where none is."""
    tensors = itertools.chain.from_iterable(block.experts for block in layout.blocks.values())
    return next((tensor for tensor in tensors if tensor.dtype not in PLAIN), None)


def plain_form(name: str, dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]] | None:
    """Name and shape of the plain matrix that a tensor of an expert stands for.

    Args:
        name: of the tensor
        dtype: as safetensors writes it
        shape: of the tensor

    Returns:
        None for scales, which go with their matrix; name and shape as they are for what is not quantised.

    Raises:
        ExciseError: it belongs to another way of quantising.
    """
    if name.endswith(SCALES):
        return None
    if name.endswith(BLOCKS) and dtype == "U8" and len(shape) == 4:
        experts, outputs, groups, half = shape
        return name.removesuffix(BLOCKS), (experts, groups * half * 2, outputs)
    if dtype not in PLAIN | FP8 or "scale" in name.rpartition(".")[2]:
        raise ExciseError(
            f"{name} ({dtype} {list(shape)}) is stored in a form that Excise cannot write dequantised; "
            "start from an unquantised checkpoint"
        )
    return name, shape
