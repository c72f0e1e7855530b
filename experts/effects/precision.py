"""A half-precision model in float32 for a while: for checks that its own rounding would hide."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from experts.anatomy import Anatomy
from experts.memory import free_bytes

HALF = (torch.bfloat16, torch.float16)


def fits_in_float32(anatomy: Anatomy) -> bool:
    """Whether a float32 copy of the half-precision weights takes at most half of the free memory.

    False for models of other precisions.
    """
    if anatomy.model.dtype not in HALF:
        return False
    half = [parameter for parameter in anatomy.model.parameters() if parameter.dtype in HALF]
    float32_bytes = sum(4 * parameter.numel() for parameter in half)
    return float32_bytes < free_bytes(anatomy.device) // 2


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Inside the block all half-precision tensors are float32; after it they are the tensors of before."""
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.dtype in HALF]
    before = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data
