"""FP8 weights whose last block is cut off, as in DeepSeek-V3: 576 rows in blocks of 128.

transformers 5.23 takes the block as rows // rows of scales. Where that leaves a rest it stops; where it does
not (192 rows, 2 rows of scales) the weights are wrong. Padded to whole blocks, every number meets its own
scale.

On a CPU most of the time of loading went into turning FP8 into float32, 8 CPU seconds for 1 GB. Here the same
numbers are looked up in a table of the 256 values, 128 rows at a time, so that they stay in the processor's
cache until they are bfloat16: 2 to 3.7.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from experts.errors import ExciseError

ROWS = 128  # of a matrix that are dequantised at once: 128 × 7,168 float32 are 3.7 MB
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
        if not _is_cut_off(quantized, scales, block):
            block = None
        one = _Dequantise(partial(library, self, output_dtype=output_dtype), block)
        dequantise = one.by_rows if _has_rows(quantized, scales, block) else one
        return dequantise(quantized, scales)

    operation._dequantize_one = exact


@dataclass(frozen=True)
class _Dequantise:
    """The library's own operation, given whole blocks.

    Attributes:
        library: numbers and scales -> weights
        block: rows and columns of a block, where the last ones are cut off; None = the library finds it
    """

    library: Callable[[Tensor, Tensor], Tensor]
    block: tuple[int, int] | None

    def __call__(self, quantized: Tensor, scales: Tensor) -> Tensor:
        numbers = _in_float32(quantized)
        if self.block is None:
            return self.library(numbers, scales)
        rows, columns = quantized.shape[-2:]
        whole = self.library(_padded(numbers, scales, self.block), scales)
        return whole[..., :rows, :columns].contiguous()

    def by_rows(self, quantized: Tensor, scales: Tensor) -> Tensor:
        """The same, some rows of blocks after the others."""
        height = self.block[0] if self.block else len(quantized) // len(scales)
        together = max(1, ROWS // height)
        parts = range(0, len(scales), together)
        return torch.cat(
            [
                self(quantized[part * height : (part + together) * height], scales[part : part + together])
                for part in parts
            ]
        )


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


def _has_rows(quantized: Tensor, scales: Tensor, block: tuple[int, int] | None) -> bool:
    """Whether this is a matrix on a CPU whose rows of blocks have scales of their own."""
    if (
        quantized.dtype not in FP8
        or quantized.device.type != "cpu"
        or (quantized.ndim, scales.ndim) != (2, 2)
    ):
        return False
    return block is not None or len(quantized) % len(scales) == 0


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
