"""Only a refused connection is taken for the end at once; trouble on this side is no evidence about the other."""

import contextlib
import errno
import os
import socket
import time

import pytest

from distmeta.runtime import cluster_health
from distmeta.runtime.cluster_health import ClusterHealth, Service


@pytest.fixture
def server():
    """A port that answers, until it is closed."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        yield listening


def health_of(server, *, patience=1.0, may_return=False):
    return ClusterHealth([Service("the raylet", "raylet", server.getsockname(), patience, may_return)])


def test_a_refused_connection_is_the_end_at_once(server):
    health = health_of(server, patience=60.0)
    server.close()
    assert health.gone(at_once=True).name == "the raylet"


def test_a_refused_connection_is_waited_out_where_the_service_may_return(server):
    health = health_of(server, patience=60.0, may_return=True)
    server.close()
    assert health.gone(at_once=True) is None


def test_without_urgency_a_refusal_needs_the_patience(server):
    health = health_of(server, patience=0.1)
    server.close()
    assert health.gone(period=0.0) is None
    time.sleep(0.1)
    assert health.gone(period=0.0).name == "the raylet"


def test_one_refusal_among_answers_is_not_the_end(server, monkeypatch):
    health = health_of(server)
    connect, calls = socket.create_connection, []

    def first_refused(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        return connect(*args, **options)

    monkeypatch.setattr(socket, "create_connection", first_refused)
    assert health.gone(at_once=True) is None
    assert len(calls) == 2


def test_no_free_descriptors_are_not_the_end_of_a_service(server):
    resource = pytest.importorskip("resource")
    health = health_of(server, patience=0.0)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (server.fileno() + 64, before[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(server.fileno()))
        with pytest.raises(OSError, match="Too many open files"):
            socket.create_connection(server.getsockname())
        found = [health.gone(at_once=True), health.gone(period=0.0)]
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found == [None, None]
    server.close()
    assert health.gone(at_once=True) is not None


@pytest.mark.parametrize("code", ["EMFILE", "ENFILE", "EADDRNOTAVAIL", "ENOBUFS", "ENOMEM"])
def test_trouble_on_this_side_is_not_the_end(server, monkeypatch, code):
    health = health_of(server, patience=0.0)

    def fail(*args, **options):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(socket, "create_connection", fail)
    assert health.gone(at_once=True) is None
    assert health.gone(period=0.0) is None


def test_a_full_backlog_needs_the_patience(monkeypatch):
    monkeypatch.setattr(cluster_health, "_KNOCK_S", 0.2)
    with contextlib.ExitStack() as kept:
        server = kept.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
        health = health_of(server, patience=0.3)
        with contextlib.suppress(TimeoutError):
            for _ in range(100):
                kept.enter_context(socket.create_connection(server.getsockname(), timeout=0.2))
            pytest.skip("this system's backlog does not fill")
        assert health.gone(at_once=True) is None
        time.sleep(0.3)
        assert health.gone(at_once=True).name == "the raylet"


def test_a_service_that_was_never_reachable_is_left_out(server):
    address = server.getsockname()
    server.close()
    health = ClusterHealth([Service("the raylet", "raylet", address, 0.0)])
    assert health.gone(at_once=True) is None
    assert health.gone(period=0.0) is None
