"""Decoder layers that are in memory only while they are asked for."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experts.errors import ExciseError
from experts.memory import trim
from experts.pretrained import align, refusing
from experts.streaming.ahead import ReadAhead
from experts.streaming.files import opened
from experts.streaming.library import Conversion
from experts.streaming.parts import Part, Parts
from experts.streaming.sizes import Sizes

NO_MEMORY = re.compile("CUDA out of memory|HIP out of memory")
Slots = list[tuple[dict[str, Any], str, Tensor]]  # table of a module's tensors, name in it, tensor


class Streamed:
    """The weights of a network whose decoder layers are read from its checkpoint again and again.

    They are on the device `meta` otherwise, where nothing can be computed with them.

    Attributes:
        sizes: bytes in memory, outside the decoder layers and in each of them
        device: where the weights go
        bytes_read: from the checkpoint so far
        seconds: that work has waited for layers so far
    """

    streamed = True

    def __init__(
        self,
        folder: Path,
        conversion: Conversion,
        layers: nn.ModuleList,
        parts: Parts,
        sizes: Sizes,
        device: torch.device,
        ahead: bool,
    ) -> None:
        self.folder = folder
        self.sizes = sizes
        self.device = device
        self.bytes_read = 0
        self.seconds = 0.0
        self._conversion = conversion
        self._layers = layers
        self._parts = parts
        self._empty: dict[int, Slots] = {}  # what loaded layers were before
        self._ahead = ReadAhead(self._load, self._drop) if ahead else None
        for layer in layers:
            layer.register_forward_pre_hook(_refuse_without_weights)

    def spans(self) -> list[range]:
        """One layer each."""
        return [range(layer, layer + 1) for layer in range(len(self._layers))]

    @contextmanager
    def loaded(self, span: range) -> Iterator[None]:
        """Inside the block the weights of these decoder layers are in memory.

        Raises:
            ExciseError: they cannot be read, or the checkpoint is no longer the one that was opened.
        """
        began = time.perf_counter()
        try:
            for layer in span:
                self._take(layer)
            trim()  # the conversion's copies
            self.seconds += time.perf_counter() - began
            if self._ahead and span.stop < len(self._layers):
                self._ahead.start(span.stop)
            yield
        except BaseException:
            self.forget()
            raise
        finally:
            for layer in span:
                self._drop(layer)
            trim()

    def forget(self) -> None:
        """Drop the layer that was read ahead, if there is one."""
        if self._ahead:
            self._ahead.forget()

    def read_outside(self) -> None:
        """Have everything outside the decoder layers in memory, for good."""
        self._read(self._parts.outside)

    def _read(self, part: Part) -> None:
        """Put a part of the checkpoint into the network."""
        with opened([stored for group in part.groups for stored in group]) as tensors:
            for group in part.groups:
                wanted = {stored.name: tensors[stored.name] for stored in group}
                _check(self._conversion.load(wanted, self.device))
                self.bytes_read += sum(stored.size for stored in group)

    def _take(self, layer: int) -> None:
        """Have a layer in memory: it was read ahead, or is read now."""
        if self._ahead is None or not self._ahead.take(layer):
            self._load(layer)

    def _load(self, layer: int) -> None:
        assert layer not in self._empty, "a layer is loaded once at a time"
        module = self._layers[layer]
        self._empty[layer] = _slots_on_meta(module)
        try:
            with refusing(self.folder, f"decoder layer {layer}"):
                self._read(self._parts.layers[layer])
                _check_whole(module)
                align(module)
                module.requires_grad_(requires_grad=False)
        except BaseException:
            self._drop(layer)
            raise

    def _drop(self, layer: int) -> None:
        """Put a layer back to what it was before."""
        for table, name, tensor in self._empty.pop(layer, []):
            table[name] = tensor


def _refuse_without_weights(layer: nn.Module, _: Any) -> None:
    """A plain forward of the network comes here; a sweep has put something else in the layer's place."""
    if "forward" not in vars(layer) and any(weight.is_meta for weight in layer.parameters()):
        raise ExciseError(
            "a streamed model has no weights outside of Excise's own sweeps: call a function of Excise, "
            'or load it with memory="resident"'
        )


def _slots_on_meta(module: nn.Module) -> Slots:
    """The parameters and buffers of a decoder layer that have no data; other buffers stay what they are."""
    tables = [table for part in module.modules() for table in (part._parameters, part._buffers)]
    slots = [(table, name, tensor) for table in tables for name, tensor in table.items()]
    return [(table, name, tensor) for table, name, tensor in slots if tensor is not None and tensor.is_meta]


def _check(report: Any) -> None:
    """Names and shapes were checked in the dry run; what can still go wrong is the conversion of the data."""
    for weight, reason in report.conversion_errors.items():
        if NO_MEMORY.search(reason):
            raise torch.OutOfMemoryError(NO_MEMORY.findall(reason)[-1])
        lines = [line for line in reason.splitlines() if line.strip()]
        raise RuntimeError(f"{weight}: {' '.join(lines[-2:])}")
    for weight, found, expected in report.mismatched_keys:
        raise RuntimeError(f"{weight}: shape {tuple(found)}, expected {tuple(expected)}")


def _check_whole(module: nn.Module) -> None:
    """Nothing was left without data."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    left = [name for name, tensor in tensors if tensor.is_meta]
    if left:
        raise RuntimeError(f"{len(left)} of its weights were not loaded, first {left[0]}")
