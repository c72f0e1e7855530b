"""Memory that is freed while layers come and go is given back, instead of being kept for later.

Two things hold on to memory that is nobody's: glibc keeps freed blocks of up to 32 MiB in its heap, and
oneDNN keeps a compiled product for each of the last 1024 shapes, of which experts make a new one for every
number of tokens. Together they took .3 GB beside layers of .08 GB.
"""

import ctypes
import os
from contextlib import suppress

PRODUCTS = 16  # compiled products that oneDNN keeps; no slower than 1024, measured on layers of 64 experts
PRODUCTS_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
# mallopt's parameter, its variable in the environment, bytes.
HEAP = (
    (-3, "MALLOC_MMAP_THRESHOLD_", 2**24),  # from this size on a block is mapped alone, and so given back
    (-1, "MALLOC_TRIM_THRESHOLD_", 2**25),  # free bytes at the end of the heap
)


def give_back_freed() -> None:
    """Keep less freed memory, in this process, from now on. What the user's environment says is left alone.

    oneDNN looks once, when it first multiplies matrices: afterwards its part has no effect.
    """
    os.environ.setdefault(PRODUCTS_VARIABLE, str(PRODUCTS))
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, variable, size in HEAP:
            if variable not in os.environ:
                mallopt(parameter, size)
