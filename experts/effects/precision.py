"""A half-precision model in float32 for a while: for checks that its own rounding would hide."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy
from experts.decoder import decoder_layers
from experts.memory import free_bytes
from experts.weights import LayerWeights

HALF = (torch.bfloat16, torch.float16)


def fits_in_float32(anatomy: Anatomy) -> bool:
    """Whether a float32 copy of the half-precision weights takes at most half of the free memory.

    That is of the weights that are in memory now; of a streamed model those of a layer come and go. False for
    models of other precisions.
    """
    if anatomy.model.dtype not in HALF:
        return False
    half = [tensor for tensor in _half(anatomy.model) if isinstance(tensor, nn.Parameter)]
    float32_bytes = sum(4 * parameter.numel() for parameter in half)
    return float32_bytes < free_bytes(anatomy.device) // 2


@contextmanager
def in_float32(anatomy: Anatomy) -> Iterator[Anatomy]:
    """Inside the block all half-precision tensors are float32; after it they are the tensors of before.

    Yields:
        The model; layers whose weights come later are float32 as well.
    """
    with _widened(anatomy.model):
        yield replace(anatomy, weights=_Widened(anatomy, anatomy.weights))


class _Widened:
    """The weights of decoder layers, in float32."""

    def __init__(self, anatomy: Anatomy, weights: LayerWeights) -> None:
        self.layers, self.underneath = decoder_layers(anatomy), weights

    @property
    def streamed(self) -> bool:
        return self.underneath.streamed

    @property
    def seconds(self) -> float:
        return self.underneath.seconds

    def spans(self) -> list[range]:
        return self.underneath.spans()

    @contextmanager
    def loaded(self, span: range) -> Iterator[None]:
        with self.underneath.loaded(span), _widened(*self.layers[span.start : span.stop]):
            yield


@contextmanager
def _widened(*modules: nn.Module) -> Iterator[None]:
    tensors = [tensor for module in modules for tensor in _half(module)]
    before = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data


def _half(module: nn.Module) -> list[Tensor]:
    """The half-precision tensors of a module whose values are in memory."""
    tensors = (*module.parameters(), *module.buffers())
    return [tensor for tensor in tensors if tensor.dtype in HALF and not tensor.is_meta]
