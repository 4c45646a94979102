"""Freed memory is used again: counted by the page faults of a process, which do not depend on the machine's load."""

import subprocess
import sys

import pytest

# malloc itself is called, for what torch and Python allocate between the tensors decides by chance whether the top of
# the heap is given back. The first cycle pays for the pages either way.
PROGRAM = """
import ctypes, resource, sys
from distmeta.malloc import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
size = int(sys.argv[2])
def cycle():
    blocks = [libc.malloc(size) for _ in range(2**27 // size)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
cycle()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    cycle()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how, mib):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, str(mib * 2**20)], capture_output=True, text=True, check=False
    )
    if done.returncode == 3:
        pytest.skip("no glibc here")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("mib", [16, 64])  # glibc maps 32 MiB and more apart, whatever its threshold
def test_the_pages_of_freed_tensors_are_not_asked_for_again(mib):
    assert faults("keep", mib) < 0.05 * faults("as it is", mib)
