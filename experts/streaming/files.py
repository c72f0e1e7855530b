"""Tensors of a checkpoint, read when they are needed."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from experts.disk.shards import FileState, Stored
from experts.errors import ExciseError

TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
# Pages of a mapped file stay in the resident set after they were read: 10 GB where reading takes 2.
CAN_READ = "backend" in inspect.signature(safetensors.torch.load_file).parameters
OPTIONS: dict[str, Any] = {"backend": "pread"} if CAN_READ else {}


def on_meta(tensors: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The tensors on the device `meta`: types and shapes.

    Raises:
        ExciseError: one is in a format that torch does not read.
    """
    return {name: _empty(stored) for name, stored in tensors.items()}


@contextmanager
def opened(tensors: Iterable[Stored]) -> Iterator[dict[str, Any]]:
    """Inside the block these tensors can be read from their files.

    Yields:
        safetensors' slices by name; `[...]` reads one.

    Raises:
        ExciseError: a file is another one than when its header was read.
    """
    tensors = list(tensors)
    files = {stored.file: stored for stored in tensors}
    _check_unchanged(files.values())
    with ExitStack() as stack:
        try:
            handles = {
                file: stack.enter_context(safe_open(file, framework="pt", **OPTIONS)) for file in files
            }
            yield {stored.name: handles[stored.file].get_slice(stored.name) for stored in tensors}
        except Exception:
            _check_unchanged(files.values())  # that may be why
            raise
        _check_unchanged(files.values())


def _empty(stored: Stored) -> Tensor:
    if stored.dtype not in TYPES:
        raise ExciseError(
            f"{stored.file}: tensor {stored.name} is stored as {stored.dtype}, "
            "which is not read layer by layer; use `memory.model: resident`"
        )
    return torch.empty(stored.shape, dtype=TYPES[stored.dtype], device="meta")


def _check_unchanged(tensors: Iterable[Stored]) -> None:
    """The files of these tensors are those whose headers were read."""
    for stored in tensors:
        try:
            state = FileState.of(stored.file.stat())
        except FileNotFoundError as error:
            raise ExciseError(
                f"{stored.file}: is gone since the checkpoint was opened; start again"
            ) from error
        if state != stored.state:
            raise ExciseError(f"{stored.file}: changed since the checkpoint was opened; start again")
