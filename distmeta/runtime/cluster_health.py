"""Probe the processes that a Ray driver cannot do without.

A driver whose own node lost its raylet waits for workers that never start, or is ended by Ray's C++ code without a word
as soon as it touches the object store; one whose head (GCS) is gone is ended the same way a minute later. Both are
seen here first, from outside Ray: a process that was killed no longer answers on its port.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SHARED_MEMORY = "/dev/shm"
# "PRI * HTTP/2.0": every gRPC server answers it, and nothing else, with a SETTINGS frame.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
_KNOCK_S = 5.0
_AGAIN_S = 0.2
# What the kernel answers for a port that nobody listens on; a timeout may be a busy peer or a full backlog.
_REFUSALS = (ConnectionRefusedError, ConnectionResetError)
# This process or machine is out of descriptors, ports or memory.
_LOCAL = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}


@dataclass
class Service:
    """A process of the cluster, by its port.

    Args:
        name: for people.
        log: name of its log files in the session's folder, without ``.out`` and ``.err``.
        address: host and port.
        patience: seconds without an answer after which it counts as gone.
        may_return: somebody may start it again.
    """

    name: str
    log: str
    address: tuple[str, int]
    patience: float
    may_return: bool = False
    silent_since: float | None = None

    def is_gone(self, now: float, *, at_once: bool = False) -> bool:
        """Knock; whether there was no answer for ``patience`` seconds.

        Args:
            now: monotonic time in seconds.
            at_once: believe two refusals in a row, unless the service may return.
        """
        problem = _knock(self.address)
        if at_once and not self.may_return and isinstance(problem, _REFUSALS):
            time.sleep(_AGAIN_S)
            problem = _knock(self.address)
            if isinstance(problem, _REFUSALS):
                return True
        if problem is None:
            self.silent_since = None
        elif not _is_local(problem):
            self.silent_since = self.silent_since if self.silent_since is not None else now
            return now - self.silent_since >= self.patience
        return False


def _knock(address: tuple[str, int]) -> OSError | None:
    """Connect once; returns what went wrong, None for an answer."""
    try:
        socket.create_connection(address, timeout=_KNOCK_S).close()
    except OSError as error:
        return error
    return None


def _is_local(problem: OSError) -> bool:
    """Return whether a knock failed on this side, which is no evidence about the peer."""
    return isinstance(problem, socket.gaierror) or problem.errno in _LOCAL


@dataclass
class ClusterHealth:
    """Knocks at services, at most once a second by default.

    Every service is knocked at on construction. One that cannot be reached from here even then (another network
    namespace, address translation) is left out: its silence later would be no news.

    Args:
        services: what must answer.
        logs: folder of Ray's log files on this machine, if known.

    Example:
        >>> with socket.create_server(("127.0.0.1", 0)) as server:
        ...     raylet = Service("the raylet", "raylet", server.getsockname(), patience=0.0)
        ...     health = ClusterHealth([raylet])
        ...     health.gone(at_once=True)
        >>> health.gone(at_once=True).name
        'the raylet'
    """

    services: Sequence[Service]
    logs: Path | None = None
    _asked: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        knocks = [(service, _knock(service.address)) for service in self.services]
        self.services = [service for service, problem in knocks if problem is None or _is_local(problem)]

    def gone(self, *, at_once: bool = False, period: float = 1.0) -> Service | None:
        """Find the first service that is gone.

        Args:
            at_once: knock now, and take two refusals in a row for the end unless the service may return: something
                failed that its end would explain. Timeouts need the service's patience all the same.
            period: seconds in which the last answers count as new.
        """
        now = time.monotonic()
        if not at_once and now - self._asked < period:
            return None
        self._asked = now
        for service in self.services:
            if service.is_gone(now, at_once=at_once):
                return service
        return None

    def log_of(self, service: Service, lines: int = 60) -> str:
        """The last lines of a service's log files; empty where there are none."""
        text = ""
        for ending in (".out", ".err"):
            with contextlib.suppress(OSError):
                if self.logs is not None:
                    path = self.logs / f"{service.log}{ending}"
                    tail = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
                    text += f"--- {path}\n" + "".join(f"{line}\n" for line in tail)
        return text


def patience_with_head() -> float:
    """Seconds that the head of a cluster that others run may be away: they may restart it; Ray ends us at 60."""
    return 0.75 * float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", "60"))  # noqa: SIM112 (Ray's spelling)


def shared_memory_free() -> int | None:
    """Bytes that are free in shared memory; None where the system has no such folder."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


def parse_address(address: str) -> tuple[str, int]:
    """``HOST:PORT`` in two.

    Raises:
        ValueError: not an address.

    Example:
        >>> parse_address("[::1]:6379")
        ('::1', 6379)
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ValueError("expected auto or HOST:PORT, such as 10.0.0.5:6379")
    return host.strip("[]"), int(port)


def require_grpc(address: tuple[str, int], timeout: float = 10.0) -> None:
    """Raise at once where nothing, or something else than a Ray head, listens: ray.init would try for minutes.

    Raises:
        OSError: no answer, or not that of a gRPC server.
    """
    with socket.create_connection(address, timeout=timeout) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
            return  # encrypted: Ray's own handshake tells
        connection.sendall(_HTTP2_PREFACE)
        answer, silent = b"", False
        try:
            while len(answer) < 9 and (more := connection.recv(9 - len(answer))):
                answer += more
        except TimeoutError:
            silent = not answer
        except ConnectionError:
            pass  # closed by a program that does not understand
    if silent:
        raise TimeoutError(f"no answer within {timeout:g} s")
    if len(answer) < 9 or answer[3] != _SETTINGS or answer[5:9] != bytes(4):
        raise ConnectionError("another program than Ray listens there")
