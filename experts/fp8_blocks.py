"""FP8 weights whose last block is cut off, as in DeepSeek-V3: 576 rows in blocks of 128.

transformers 5.23 takes the block as rows // rows of scales. Where that leaves a rest it stops; where it does
not (192 rows, 2 rows of scales) the weights are wrong. Padded to whole blocks, every number meets its own
scale.

On a CPU most of the time of loading went into turning FP8 into float32, 8 CPU seconds for 1 GB; looked up in
a table of its 256 values, the same numbers take 3.5.
"""

import functools
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from experts.errors import ExciseError

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class _Quantizer:
    """What `Fp8Dequantize` asks its quantizer for."""

    class quantization_config:  # noqa: N801 - transformers' name
        weight_block_size = (2, 2)


@functools.cache
def mend() -> None:
    """Let transformers dequantise blocks that are cut off, in versions that do not.

    Raises:
        ExciseError: a version that dequantises in another way.
    """
    if not hasattr(Fp8Dequantize, "_dequantize_one"):
        raise ExciseError(
            f"transformers {transformers.__version__} dequantises FP8 in another way than Excise knows; "
            "install the version that constraints.txt names"
        )
    if _is_exact():
        return
    operation: Any = Fp8Dequantize
    library = operation._dequantize_one

    def exact(
        self: Any, quantized: Tensor, scales: Tensor, output_dtype: torch.dtype | None = None
    ) -> Tensor:
        block = getattr(self.hf_quantizer.quantization_config, "weight_block_size", None)
        numbers = _in_float32(quantized)
        if not _is_cut_off(quantized, scales, block):
            weights: Tensor = library(self, numbers, scales, output_dtype)
            return weights
        rows, columns = quantized.shape[-2:]
        whole: Tensor = library(self, _padded(numbers, scales, block), scales, output_dtype)
        return whole[..., :rows, :columns].contiguous()

    operation._dequantize_one = exact


def _is_exact() -> bool:
    """Whether the installed version gives every number its own scale: 3 × 3 numbers in blocks of 2 × 2."""
    operation: Any = Fp8Dequantize
    ones = torch.ones(3, 3).to(torch.float8_e4m3fn)
    scales = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.0, 2.0], [3.0, 3.0, 4.0]])
    try:
        weights = operation(_Quantizer())._dequantize_one(ones, scales, torch.float32)
    except ValueError:  # 3 rows are no multiple of 2
        return False
    return torch.equal(weights, expected)


def _is_cut_off(quantized: Tensor, scales: Tensor, block: Any) -> bool:
    """Whether the scales are those of blocks of that size, of which the last ones are not whole."""
    if not block or quantized.dtype not in FP8 or min(quantized.ndim, scales.ndim) < 2:
        return False
    rows, columns = quantized.shape[-2:]
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    return tuple(scales.shape[-2:]) == grid and bool(rows % block[0] or columns % block[1])


def _in_float32(quantized: Tensor) -> Tensor:
    """FP8 on a CPU in float32; everything else as it is."""
    if quantized.dtype not in FP8 or quantized.device.type != "cpu":
        return quantized
    table = torch.arange(256, dtype=torch.uint8).view(quantized.dtype).float()
    codes = quantized.contiguous().view(torch.uint8).flatten().int()
    return table.index_select(0, codes).view(quantized.shape)


def _padded(quantized: Tensor, scales: Tensor, block: Any) -> Tensor:
    """The numbers, with zeros up to whole blocks."""
    rows, columns = quantized.shape[-2:]
    in_whole_blocks = (scales.shape[-2] * block[0], scales.shape[-1] * block[1])
    padded = quantized.new_zeros((*quantized.shape[:-2], *in_whole_blocks))
    padded[..., :rows, :columns] = quantized
    return padded
