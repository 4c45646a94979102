"""Memory of tensors that is kept for the next ones, instead of being given back and asked for again.

A meta-gradient allocates and frees the same large tensors at every step. glibc's malloc asks the kernel for each of
them and gives it back, and the kernel clears every page anew: a fifth to a third of the time of a step.
"""

from __future__ import annotations

import ctypes
import sys

# <malloc.h>
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MIB = 2**20


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed, up to half a GiB at the top of the heap, for tensors of up to 32 MiB.

    For the whole process, and without effect on any number. ``MALLOC_...`` variables of the environment are overruled.

    Returns:
        Whether this process has a malloc that can: glibc's, on Linux.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    # 32 MiB is the largest threshold that glibc takes.
    settings = {_MMAP_THRESHOLD: 32 * _MIB, _TRIM_THRESHOLD: 512 * _MIB, _TOP_PAD: 64 * _MIB}
    return all(mallopt(option, value) == 1 for option, value in settings.items())
