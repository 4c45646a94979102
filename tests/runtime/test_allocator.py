"""Freed memory is used again: counted by the page faults of a process, which do not depend on the machine's load."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from distmeta.runtime.allocator import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
torch.set_num_threads(1)
def step():
    return [torch.ones(2**20) for _ in range(8)]  # 4 MiB each
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("no glibc here")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_the_pages_of_freed_tensors_are_not_asked_for_again():
    assert faults("keep") < 0.1 * faults("as it is")
