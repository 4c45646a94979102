"""Where a run computes: what is started early, who closes it, and what is said meanwhile."""

from __future__ import annotations

import threading

import pytest

from distmeta import LocalBackend, Place
from distmeta.errors import ConfigError, RuntimeFailure
from distmeta.run.place import Opening


class Counted(LocalBackend):
    """Records in which thread it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: list[str] = []

    def close(self) -> None:
        self.closed.append(threading.current_thread().name)
        super().close()


def test_a_backend_that_was_given_stays_open():
    backend = Counted()
    with Place(backend=backend).open() as opened:
        assert opened is backend
    assert backend.closed == []


def test_a_backend_of_the_background_is_closed_by_the_thread_that_started_it():
    backend, phases = Counted(), []
    opening = Opening(lambda: backend, phases.append, background=True)
    opening.begin()
    opening.begin()  # once
    assert opening.backend() is backend
    opening.close()
    assert backend.closed == ["distmeta-backend"]
    assert (phases[0], phases[-1]) == ("starting Ray", "leaving Ray")
    assert phases.count("starting Ray") == 1


@pytest.mark.parametrize(
    ("address", "expected"),
    [(None, "starting Ray"), ("ray://head:10001", "connecting to the Ray cluster at ray://head:10001")],
)
def test_the_watcher_receives_what_is_waited_for(monkeypatch, address, expected):
    monkeypatch.setattr(Place, "_start", lambda *_: Counted())
    phases: list[str] = []
    place = Place(backend="ray", address=address, watch=lambda event: phases.append(event.text))
    with place.open():
        assert phases[0] == expected


def test_a_backend_that_nobody_asked_for_is_closed_too():
    backend = Counted()
    opening = Opening(lambda: backend, background=True)
    opening.begin()
    opening.close()
    assert backend.closed == ["distmeta-backend"]


def test_a_watcher_that_raises_does_not_keep_the_backend_open():
    backend = Counted()

    def watch(text: str) -> None:
        if text == "leaving Ray":
            raise KeyboardInterrupt

    opening = Opening(lambda: backend, watch, background=True)
    opening.backend()
    with pytest.raises(KeyboardInterrupt):
        opening.close()
    assert backend.closed == ["distmeta-backend"]


def test_an_error_of_the_background_is_raised_where_the_backend_is_waited_for():
    def fail() -> LocalBackend:
        raise RuntimeFailure("Ray did not start.")

    opening = Opening(fail, background=True)
    opening.begin()
    with pytest.raises(RuntimeFailure, match="did not start"):
        opening.backend()
    opening.close()


def test_what_never_began_costs_nothing():
    opening = Opening(lambda: pytest.fail("started"), background=True)
    opening.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"backend": "spark"}, "no backend 'spark'"), ({"address": "auto"}, "local backend has no cluster at 'auto'")],
)
def test_a_place_that_does_not_exist_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Place(**settings)
