"""Memory of tensors that is kept for the next ones, instead of being given back and asked for again.

A meta-gradient allocates and frees the same large tensors at every step. glibc's malloc asks the kernel for each of
them and gives it back, and the kernel clears every page anew: a fifth to a third of the time of a step.
"""

from __future__ import annotations

import ctypes
import sys

# <malloc.h>
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_MIB = 2**20


def keep_freed_memory() -> bool:
    """Let malloc take tensors from the heap and keep what is freed, up to half a GiB at the top.

    For the whole process, and without effect on any number. ``MALLOC_...`` variables of the environment are overruled.

    Returns:
        Whether this process has a malloc that can: glibc's, on Linux.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    # No mappings of their own, which glibc takes from 32 MiB on whatever the threshold: clearing their pages is most of
    # the time of elementwise work on them. Where the heap cannot grow, glibc maps memory all the same.
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 512 * _MIB, _TOP_PAD: 64 * _MIB}
    return all(mallopt(option, value) == 1 for option, value in settings.items())
