"""Chunks that fit into the free memory, and smaller ones where that was too much."""

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress

import torch

from experts.errors import ExciseError, is_out_of_memory, one_line
from experts.limits import free_memory, processes_here
from experts.memory_rule import room_for

SHARE = 0.3  # of the free memory; how much a forward takes is only estimated


def free_bytes(device: torch.device) -> int:
    """Free memory of the device, as far as this process may use it.

    On a GPU what torch holds in reserve counts as free. Processes of torchrun that share memory, or a GPU,
    may use a part each.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        left = int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return left // -(-processes_here() // torch.cuda.device_count())
    return free_memory()


def device_for(size: int) -> torch.device:
    """The GPU, where weights of that many bytes leave enough of its memory for the work; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    card = torch.device("cuda", torch.cuda.current_device())
    return card if size <= room_for(free_bytes(card)) else torch.device("cpu")


def chunk_size(device: torch.device, bytes_per_item: int, most: int) -> int:
    """How many items fit into a share of the free memory, from 1 to `most`."""
    fitting = int(SHARE * free_bytes(device)) // max(1, bytes_per_item)
    return max(1, min(most, fitting))


def in_chunks(total: int, size: int, work: Callable[[int, int], None], item: str) -> int:
    """Work through items chunk by chunk; halve the chunks when memory runs out.

    Args:
        total: how many items there are
        size: items of a chunk, to begin with
        work: called as work(start, stop); it must be able to begin a range again
        item: the word for one of them in the error message

    Returns:
        The size that fitted.

    Raises:
        ExciseError: not even a single item fits.
    """
    start = 0
    while start < total:
        stop = min(total, start + size)
        try:
            work(start, stop)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if stop - start == 1:
                raise ExciseError(
                    f"out of memory: not even one {item} fits ({one_line(error)}); "
                    "use shorter windows or a smaller dtype"
                ) from error
            size = (stop - start) // 2
        else:
            start = stop
            continue
        release()  # outside the handler: its traceback holds the tensors of the failed attempt
    return size


def trim() -> None:
    """Give freed memory back to the system: glibc keeps it, thread by thread."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def release() -> None:
    """Give memory back that nothing needs any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
