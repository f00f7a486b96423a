"""Keeps large blocks that were freed, so that the next step need not ask the system for them."""

import ctypes
import platform
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, from malloc.h."""
LARGEST = 2**31 - 1
"""Its values are C ints."""


@cache
def keep_freed_memory() -> bool:
    """Make glibc's malloc reuse blocks of any size, for the whole process; False without glibc.

    By default it maps blocks above 32 MiB anew each time and returns them when they are freed:
    each [4096, 2048] float32 temporary costs 8,192 page faults, ten times what filling it takes.
    The process keeps the largest amount of memory that it ever had in use.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_THRESHOLD, LARGEST), mallopt(M_TRIM_THRESHOLD, LARGEST)])
