"""What a method raises comes out of fetch as one of distmeta's errors, in this process as on a cluster."""

import pytest

from distmeta.errors import DataError, DistmetaError, RuntimeFailure
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


def test_somebody_s_own_error_has_its_traceback():
    error = ZeroDivisionError("no pixels")
    with pytest.raises(
        RuntimeFailure, match=r"(?s)raised ZeroDivisionError: no pixels\. Its traceback:.*test_backend\.py"
    ) as caught:
        fetch(Actor, "fails", error)
    assert caught.value.__cause__ is error
    with pytest.raises(RuntimeFailure, match="raised KeyError: 'here'"):
        fetch(Unborn, "fails")


def test_an_error_of_distmeta_stays_itself():
    error = DataError("the dataset is gone")
    with pytest.raises(DistmetaError) as caught:
        fetch(Actor, "fails", error)
    assert caught.value is error
