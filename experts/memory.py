"""How much fits: chunks from the memory that is free, and smaller ones when that was too much."""

import gc
from collections.abc import Callable

import psutil
import torch

from experts.errors import ExciseError, is_out_of_memory, one_line
from experts.limits import memory_left

SHARE = 0.3  # of the free memory; temporaries of a forward are only estimated


def free_bytes(device: torch.device) -> int:
    """Free memory of the device, as far as this process may use it; on a GPU what torch holds in reserve is free."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([int(psutil.virtual_memory().available), *memory_left()])


def chunk_size(device: torch.device, bytes_per_item: int, most: int) -> int:
    """Items that fit into a share of the free memory, from 1 to `most`."""
    return max(1, min(most, int(SHARE * free_bytes(device)) // max(1, bytes_per_item)))


def in_chunks(total: int, size: int, work: Callable[[int, int], None], what: str) -> int:
    """Calls work(start, stop) over `total` items, `size` at a time; halves the size when memory runs out. Gives back the size that fitted.

    Raises ExciseError when a single item does not fit. `work` must be able to begin a range again.
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
                    f"out of memory: not even one {what} fits ({one_line(error)}); use shorter windows or a smaller dtype"
                ) from error
            size = (stop - start) // 2
        else:
            start = stop
            continue
        _release()  # outside the handler: its traceback holds the tensors of the failed attempt
    return size


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
