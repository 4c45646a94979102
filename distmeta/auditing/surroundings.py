"""What a task must not depend on, pinned to one value or changed to another.

Everything here is undone when its context ends; an audit enters it in a process of its own all the same.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import platform
import random
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, date, datetime, tzinfo
from typing import Any

import numpy as np
import torch

Note = Callable[[str], None]
"""Called with what is read, such as ``"time.time()"``, from within the call that reads it."""

FACTORS = ("generators", "entropy", "clock", "environment", "rank", "files", "threads")
"""What can be changed within a process, one at a time."""

_RANK_VARIABLES = {
    **dict.fromkeys(("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"), "3"),
    **dict.fromkeys(("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"), "1"),
    **dict.fromkeys(("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"), "5"),
    **dict.fromkeys(("LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "SLURM_NODEID"), "2"),
    **dict.fromkeys(("RAY_JOB_ID", "RAY_WORKER_ID", "RAY_NODE_ID", "RAY_RANK"), "07"),
}
_HARMLESS = {
    "TZ": "Pacific/Apia",
    "USER": "somebody",
    "LOGNAME": "somebody",
    "HOSTNAME": "elsewhere",
    "TERM": "dumb",
    "EDITOR": "none",
}
KNOWN_VARIABLES = frozenset(_RANK_VARIABLES) | frozenset(_HARMLESS) | {"OMP_NUM_THREADS"}
"""Environment variables that some factor changes."""

_NO_DATA: torch.utils.data.Dataset[Any] = torch.utils.data.Dataset()


class Surroundings:
    """One setting of everything that can be pinned.

    Args:
        varied: which of :data:`FACTORS` have their other value.
        environment: further variables for the factor ``"environment"``.
        note: told of every read of clock, entropy, environment, rank, threads and folders.
    """

    def __init__(self, varied: Collection[str], environment: Mapping[str, str], note: Note) -> None:
        self._varied, self._environment, self._note = frozenset(varied), dict(environment), note
        self._clock = _Clock("clock" in self._varied)
        self._entropy = _Entropy("entropy" in self._varied)

    def reset(self) -> None:
        """Put generators, entropy and clock back to their start; called before every draw."""
        other = "generators" in self._varied
        _seed_globals(20_261 if other else 7)
        if other:  # advanced as well: a generator that is seeded but read later differs, too
            random.random()
            np.random.random(3)
            torch.rand(5)
        self._clock.reset()
        self._entropy.reset()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Pin or change everything until the context ends."""
        with ExitStack() as stack, _generators_kept():
            self._pin_clock(stack)
            self._pin_entropy(stack)
            self._pin_environment(stack)
            self._pin_rank(stack)
            self._pin_files(stack)
            self._pin_threads(stack)
            self.reset()
            yield

    def _replace(self, stack: ExitStack, where: Any, name: str, value: Any) -> None:
        if hasattr(where, name):
            stack.enter_context(replaced(where, name, value))

    def _pin_clock(self, stack: ExitStack) -> None:
        clock, note = self._clock, self._note

        def reader(name: str, read: Callable[[], Any]) -> Callable[..., Any]:
            def called(*_: Any) -> Any:
                note(f"time.{name}()")
                return read()

            return called

        readers: dict[str, Callable[[], Any]] = {"time": lambda: clock.now() / 1e9, "time_ns": clock.now}
        for name in ("monotonic", "perf_counter", "process_time", "thread_time"):
            readers |= {name: lambda: clock.running() / 1e9, f"{name}_ns": clock.running}
        for name, read in readers.items():
            self._replace(stack, time, name, reader(name, read))
        for name in ("localtime", "gmtime", "ctime"):
            self._replace(stack, time, name, _of_now(getattr(time, name), name, clock, note))
        format_time = time.strftime

        def strftime(form: str, *given: Any) -> str:
            if not given:
                note("time.strftime()")
            return format_time(form, *(given or (time.localtime(clock.now() / 1e9),)))

        self._replace(stack, time, "strftime", strftime)

        def now(cls: type[datetime], tz: tzinfo | None = None) -> datetime:
            note("datetime.now()")
            return cls.fromtimestamp(clock.now() / 1e9, tz)

        def utcnow(cls: type[datetime]) -> datetime:
            note("datetime.utcnow()")
            return cls.fromtimestamp(clock.now() / 1e9, UTC).replace(tzinfo=None)

        def today(cls: type[date]) -> date:
            note("date.today()")
            return cls.fromtimestamp(clock.now() / 1e9)

        stack.enter_context(_methods_replaced(datetime, {"now": now, "utcnow": utcnow}))
        stack.enter_context(_methods_replaced(date, {"today": today}))

    def _pin_entropy(self, stack: ExitStack) -> None:
        entropy, note = self._entropy, self._note

        def urandom(size: int) -> bytes:
            note("the operating system's random numbers")
            return entropy.read(size)

        def integer() -> int:
            return int.from_bytes(urandom(32), "little")

        seed_method, seed_global, torch_seed = random.Random.seed, random.seed, torch.manual_seed

        def seed(self: random.Random, a: Any = None, version: int = 2) -> None:
            seed_method(self, integer() if a is None else a, version)

        def global_seed(a: Any = None, version: int = 2) -> None:
            seed_global(integer() if a is None else a, version)

        def seed_torch() -> int:
            given = integer() % 2**63
            torch_seed(given)
            return given

        self._replace(stack, os, "urandom", urandom)
        self._replace(stack, random, "_urandom", urandom)  # SystemRandom, secrets and numpy's default_rng() read it
        self._replace(stack, random.Random, "seed", seed)
        self._replace(stack, random, "seed", global_seed)
        self._replace(stack, torch, "seed", seed_torch)
        self._replace(stack, torch.random, "seed", seed_torch)
        self._replace(stack, uuid, "uuid1", lambda *_, **__: uuid.UUID(bytes=urandom(16)))

    def _pin_environment(self, stack: ExitStack) -> None:
        before = dict(os.environ)
        stack.callback(_restore_environment, before)
        for name in _RANK_VARIABLES:
            os.environ.pop(name, None)
        if "rank" in self._varied:
            os.environ.update(_RANK_VARIABLES)
        if "environment" in self._varied:
            os.environ.update(_HARMLESS | self._environment)
        os.environ.update(OMP_NUM_THREADS="3" if "threads" in self._varied else "1")
        with suppress(AttributeError):
            time.tzset()
        watched = type("_Environ", (_Watched,), {"note": staticmethod(self._note)})
        kind = os.environ.__class__
        os.environ.__class__ = watched
        stack.callback(setattr, os.environ, "__class__", kind)

    def _pin_rank(self, stack: ExitStack) -> None:
        from torch.utils.data import _utils

        other, note = "rank" in self._varied, self._note
        info = _utils.worker.WorkerInfo(id=3, num_workers=5, seed=77, dataset=_NO_DATA) if other else None

        def told(name: str, value: Any) -> Callable[..., Any]:
            def called(*_: Any, **__: Any) -> Any:
                note(f"{name}()")
                return value

            return called

        for where in (torch.utils.data, _utils.worker):
            self._replace(stack, where, "get_worker_info", told("torch.utils.data.get_worker_info", info))
        host = "worker-3" if other else "worker-0"
        self._replace(stack, socket, "gethostname", told("socket.gethostname", host))
        self._replace(stack, platform, "node", told("platform.node", host))
        if other and torch.distributed.is_available():
            for name, value in (("is_initialized", True), ("get_rank", 3), ("get_world_size", 5)):
                self._replace(stack, torch.distributed, name, told(f"torch.distributed.{name}", value))
        process = os.getpid

        def getpid() -> int:
            note("os.getpid()")
            return process()

        self._replace(stack, os, "getpid", getpid)

    def _pin_files(self, stack: ExitStack) -> None:
        backwards, note = "files" in self._varied, self._note
        list_folder, scan = os.listdir, os.scandir

        def listdir(*path: Any) -> list[Any]:
            note("os.listdir()")
            return sorted(list_folder(*path), reverse=backwards)

        def scandir(*path: Any) -> _Entries:
            note("os.scandir()")
            with scan(*path) as entries:
                return _Entries(sorted(entries, key=lambda entry: entry.name, reverse=backwards))

        self._replace(stack, os, "listdir", listdir)
        self._replace(stack, os, "scandir", scandir)

    def _pin_threads(self, stack: ExitStack) -> None:
        other, note = "threads" in self._varied, self._note
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(3 if other else 1)
        threads, cpus = torch.get_num_threads, 6 if other else 2

        def get_num_threads() -> int:
            note("torch.get_num_threads()")
            return threads()

        def cpu_count() -> int:
            note("os.cpu_count()")
            return cpus

        self._replace(stack, torch, "get_num_threads", get_num_threads)
        for name in ("cpu_count", "process_cpu_count"):
            self._replace(stack, os, name, cpu_count)
        self._replace(stack, os, "sched_getaffinity", lambda _: set(range(cpu_count())))


@contextmanager
def replaced(where: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of a module or class until the context ends."""
    before = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, before)


def _seed_globals(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


@contextmanager
def _generators_kept() -> Iterator[None]:
    own, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)
        torch.set_rng_state(torchs)


class _Clock:
    """A clock that stands still between draws and goes on by a millisecond when it is read."""

    def __init__(self, later: bool) -> None:
        # Another year, month, weekday, hour, minute, second and fraction.
        self._start = 1_750_000_000_000_000_000 + (later * 34_585_873_371_000_113)
        self._reads = 0

    def reset(self) -> None:
        self._reads = 0

    def now(self) -> int:
        self._reads += 1
        return self._start + self._reads * 1_000_000

    def running(self) -> int:
        return self.now() - 1_749_999_000_000_000_000


class _Entropy:
    """Random bytes that are the same after every reset."""

    def __init__(self, other: bool) -> None:
        self._key, self._reads = b"other" if other else b"pinned", 0

    def reset(self) -> None:
        self._reads = 0

    def read(self, size: int) -> bytes:
        self._reads += 1
        return hashlib.shake_128(self._key + str(self._reads).encode()).digest(size)


def _of_now(function: Callable[..., Any], name: str, clock: _Clock, note: Note) -> Callable[..., Any]:
    def called(seconds: float | None = None) -> Any:
        if seconds is None:
            note(f"time.{name}()")
        return function(clock.now() / 1e9 if seconds is None else seconds)

    return called


@contextmanager
def _methods_replaced(kind: type, methods: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Replace class methods of a type that is written in C until the context ends.

    Its attributes cannot be set, its dictionary can be changed. The type stays the same object: libraries that are
    imported meanwhile may derive from it.
    """
    (members,) = gc.get_referents(kind.__dict__)
    before = {name: members[name] for name in methods}
    try:
        members.update({name: classmethod(method) for name, method in methods.items()})
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))
        yield
    finally:
        members.update(before)
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))


class _Watched(os._Environ):  # type: ignore[type-arg]
    """``os.environ``, which notes what is read."""

    note: Note

    def __getitem__(self, key: str) -> str:
        self.note(f"os.environ[{key!r}]")
        value: str = super().__getitem__(key)
        return value

    def __contains__(self, key: object) -> bool:
        self.note(f"os.environ[{key!r}]")
        return super().__contains__(key)


def _restore_environment(before: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    with suppress(AttributeError):
        time.tzset()


class _Entries:
    """What ``os.scandir`` returns, in an order of its own."""

    def __init__(self, entries: list[os.DirEntry[Any]]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[os.DirEntry[Any]]:
        return self

    def __next__(self) -> os.DirEntry[Any]:
        return next(self._entries)

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is open."""
