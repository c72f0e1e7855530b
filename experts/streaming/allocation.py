"""What libraries keep for later: less where layers come and go, more where all weights are in memory.

Two things hold on to memory that is nobody's: glibc keeps freed blocks of up to 32 MiB in its heap, and
oneDNN keeps a compiled product for each of the last 1024 shapes, of which experts make a new one for every
number of tokens. Together they took .3 GB beside layers of .08 GB. Where all weights are in memory 1024 are
too few: compiling them anew took 40 % of a test of 22 plans of the demo.
"""

import ctypes
import os
from contextlib import suppress

from experts.limits import free_memory

PRODUCTS = 16  # compiled products that oneDNN keeps; no slower than 1024, measured on layers of 64 experts
# Where all weights are in memory plans meet the same numbers of tokens again: as many as a share of the free
# memory holds, from oneDNN's own number up.
OWN, MOST, PRODUCT, SHARE = 1024, 4096, 800_000, 0.15  # numbers; bytes; of the free memory
PRODUCTS_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
OURS = "EXCISE_PRODUCTS"  # the number, where keep_products set it: it is no wish of the user's
# mallopt's parameter, its variable in the environment, bytes.
HEAP = (
    (-3, "MALLOC_MMAP_THRESHOLD_", 2**24),  # from this size on a block is mapped alone, and so given back
    (-1, "MALLOC_TRIM_THRESHOLD_", 2**25),  # free bytes at the end of the heap
)


def keep_products() -> None:
    """Let oneDNN keep more compiled products than it would, unless the user's environment says otherwise.

    It looks once, when it first multiplies matrices: afterwards this has no effect.
    """
    count = min(MOST, int(SHARE * free_memory() / PRODUCT))
    if PRODUCTS_VARIABLE not in os.environ and count > OWN:
        os.environ[PRODUCTS_VARIABLE] = str(count)
        os.environ[OURS] = str(count)


def give_back_freed() -> None:
    """Keep less freed memory in this process, from now on. What the user's environment says is left alone."""
    if os.environ.get(PRODUCTS_VARIABLE) == os.environ.pop(OURS, None):
        os.environ[PRODUCTS_VARIABLE] = str(PRODUCTS)
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, variable, size in HEAP:
            if variable not in os.environ:
                mallopt(parameter, size)
