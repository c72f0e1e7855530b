"""FP8 blocks that are cut off: every number times its own scale, in float32, bit by bit."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from experts import fp8_blocks
from experts.errors import ExciseError
from experts.fp8_blocks import mend
from tests.support.quantised import spread_out

SHAPES = [(576, 640), (192, 256), (256, 192), (100, 130), (256, 384), (128, 128), (60, 40)]


def dequantised(weights: Tensor, scales: Tensor, block: tuple[int, int] | None = (128, 128)) -> Tensor:
    mend()
    quantizer = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=block))
    result: Tensor = Fp8Dequantize(quantizer)._dequantize_one(weights, scales, torch.float32)
    return result


def quantities(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    grid = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    weights = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    return weights, torch.rand(grid, generator=generator) + 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_matrices(shape: tuple[int, int]) -> None:
    """576 rows with 5 scales, as in DeepSeek-V3; 192 with 2, where the library is silently wrong."""
    weights, scales = quantities(shape)
    found = dequantised(weights, scales)
    assert found.is_contiguous()
    assert torch.equal(found, weights.float() * spread_out(scales, shape))


@pytest.mark.parametrize("height", [1, 40, 100, 128, 300])
def test_blocks_of_any_height_in_one_matrix(height: int) -> None:
    """A matrix is dequantised some rows at a time; blocks keep their scales."""
    weights = torch.randn(600, 8, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    scales = torch.arange(1.0, 600 // height + 1)[:, None]
    whole = weights[: height * len(scales)]
    expected = whole.float() * scales.repeat_interleave(height, 0)
    for block in (None, (height, 8)):
        assert torch.equal(dequantised(whole, scales, block), expected)


def test_experts_in_one_tensor() -> None:
    weights, scales = quantities((3, 192, 160))
    expected = weights.float() * spread_out(scales, (192, 160))
    assert torch.equal(dequantised(weights, scales), expected)


def test_scales_as_exponents() -> None:
    """Powers of two in a byte, as MXFP8 stores them."""
    weights, _ = quantities((192, 128))
    scales = torch.tensor([[126], [129]], dtype=torch.uint8)
    expected = weights.float() * spread_out(torch.tensor([[0.5], [4.0]]), (192, 128))
    assert torch.equal(dequantised(weights, scales), expected)


def test_other_blocks_are_the_library_s_own() -> None:
    """A scale for each row, which the configuration's block does not describe."""
    weights, _ = quantities((6, 4))
    scales = torch.arange(1.0, 7.0)[:, None]
    for block in ((128, 128), None):
        assert torch.equal(dequantised(weights, scales, block), weights.float() * scales)


def test_mended_once() -> None:
    mend()
    before = Fp8Dequantize._dequantize_one
    mend.cache_clear()
    mend()
    assert Fp8Dequantize._dequantize_one is before


def test_a_version_with_another_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8_blocks, "Fp8Dequantize", object)
    mend.cache_clear()
    with pytest.raises(ExciseError, match=r"transformers 5.* FP8 .* constraints.txt"):
        mend()


@pytest.mark.parametrize("dtype", fp8_blocks.FP8)
def test_every_code(dtype: torch.dtype) -> None:
    """All 256 numbers of the format: zeros with signs, subnormals, infinities, and what is no number."""
    weights = torch.arange(256, dtype=torch.uint8).view(dtype).view(16, 16)
    found = dequantised(weights, torch.ones(1, 1), None)
    assert torch.equal(found.view(torch.int32), weights.float().view(torch.int32))
