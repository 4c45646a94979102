"""A cluster that does not come up is said in one message; what it does once it is up is in test_invariants.py."""

import pytest
import ray

from distmeta.errors import RuntimeFailure
from distmeta.runtime.ray_backend import RayBackend


@pytest.mark.parametrize(
    "error",
    [
        # What Ray 2.60 raises when its processes are too slow, and when they answer too late.
        Exception("The current node timed out during startup. This could happen because some of the Ray processes ..."),
        ray.exceptions.RaySystemError("Failed to connect to GCS."),
        TimeoutError(),
    ],
)
def test_ray_that_does_not_start_is_one_message(monkeypatch, error):
    ended = []

    def init(**options):
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    with pytest.raises(RuntimeFailure) as caught:
        RayBackend()
    message = str(caught.value)
    assert message.startswith("Ray did not start on this machine: ")
    assert (str(error) or "TimeoutError").split(".")[0] in message
    assert message.endswith("or with --backend local.")
    assert ended == [True]
