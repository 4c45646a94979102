"""What a method raises comes out of fetch as one of distmeta's errors, in this process as on a cluster."""

import pytest
import torch

from distmeta.errors import DataError, DistmetaError, RuntimeFailure, WorkerOutOfMemory
from distmeta.runtime.backend import LocalBackend, Resources


class Actor:
    def fails(self, error):
        raise error


class Unborn:
    def __init__(self):
        raise KeyError("here")


def fetch(kind, method, *words):
    backend = LocalBackend()
    return backend.fetch(backend.call(backend.spawn(kind, "worker-0", Resources(1, 0, 1)), method, *words))


def test_an_error_of_the_user_is_one_short_message_and_its_traceback_is_kept():
    error = ZeroDivisionError("no pixels\n" * 50)
    with pytest.raises(RuntimeFailure) as caught:
        fetch(Actor, "fails", error)
    line = error.__traceback__.tb_next.tb_lineno  # of Actor.fails
    assert str(caught.value) == (
        f"A worker raised ZeroDivisionError: no pixels ({__file__}, line {line}). Fix that line, then `distmeta resume "
        "RUN_DIR`."
    )
    assert caught.value.raw.startswith("Traceback (most recent call last)")
    assert caught.value.raw.count("no pixels") == 50
    assert caught.value.__cause__ is error
    with pytest.raises(RuntimeFailure, match="raised KeyError: 'here'"):
        fetch(Unborn, "fails")


def test_a_lack_of_memory_has_its_own_kind():
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("Allocator: can't allocate memory: you")):
        with pytest.raises(WorkerOutOfMemory, match=r"raised \w+(: .*)? \(.*test_backend"):
            fetch(Actor, "fails", error)


def test_an_error_of_distmeta_stays_itself():
    error = DataError("the dataset is gone")
    with pytest.raises(DistmetaError) as caught:
        fetch(Actor, "fails", error)
    assert caught.value is error
