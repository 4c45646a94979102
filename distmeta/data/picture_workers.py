"""Read many pictures in order, by several processes.

The processes are plain Python interpreters that import this module and answer over pipes. They are not forked: the
parent may hold Ray, torch and their threads. They are not multiprocessing's either, which would run the user's script
again in each of them. Each ends when its pipe closes, however its parent ended.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from distmeta.data.pictures import Pixels, Recipe
from distmeta.errors import DataError

BATCH = 64
"""Pictures per request, at most: a process idles for some milliseconds between two."""

_BATCH_BYTES = 4 * 2**20  # pixels per request, at most; large pictures are asked for one by one

WORTH_A_PROCESS = 250
"""Pictures per process, at least: one takes about as long to start as to read these."""

_AHEAD = 3  # requests in flight per process; results wait in memory until their turn

# Where a job's folder leads sys.path, its copy.py would be taken for Python's: what is inherited comes last.
_START = (
    "import pickle, sys; own, path = pickle.load(sys.stdin.buffer); sys.path.insert(0, own); import distmeta; "
    "del sys.path[0]; sys.path += path; from distmeta.data.picture_workers import serve; serve()"
)


class Read(NamedTuple):
    """A picture that was read, or the reason why not.

    Args:
        pixels: ``[C, H, W]`` uint8; ``None`` after an error.
        error: message of the error; empty if there is none.
    """

    pixels: Pixels | None
    error: str


def read_pictures(paths: Sequence[str], recipe: Recipe, workers: int | None = None) -> Generator[Read, None, None]:
    """Read pictures; the results are the same, and in the same order, for every number of workers.

    Args:
        paths: files, in order.
        recipe: what they are converted to.
        workers: processes, at most; by default one for each CPU of this process. Few pictures are read by fewer, and
            with one, this process reads.

    Returns:
        One :class:`Read` per path, in order. A few are read ahead; memory does not grow with the number of paths.

    Raises:
        DataError: ``workers`` is below 1, or a process ended by itself.

    Example:
        >>> [read.error for read in read_pictures(["nowhere.png"], Recipe())]
        ['nowhere.png does not exist. Correct the path; ...]
    """
    if workers is not None and workers < 1:
        raise DataError(f"workers is {workers}; expected a number of processes, at least 1.")
    count = min(workers or cpus(), max(1, len(paths) // WORTH_A_PROCESS))
    if count == 1 or not sys.executable:
        return (_read(path, recipe) for path in paths)
    return _read_by_processes(paths, recipe, count)


def serve() -> None:
    """Answer requests from stdin on stdout, in a process of its own, until stdin closes."""
    import warnings

    warnings.simplefilter("ignore")  # about metadata; what concerns pixels is an error
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    with suppress(EOFError, BrokenPipeError):
        recipe: Recipe = pickle.load(sys.stdin.buffer)
        while True:
            paths: list[str] = pickle.load(sys.stdin.buffer)
            pickle.dump([_read(path, recipe) for path in paths], answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
    os._exit(0)


def _read(path: str, recipe: Recipe) -> Read:
    try:
        return Read(recipe.make(path, path), "")
    except DataError as error:
        return Read(None, error.message)


def _read_by_processes(paths: Sequence[str], recipe: Recipe, count: int) -> Generator[Read, None, None]:
    processes = _Processes(recipe)
    # A thread per process writes a request and waits for its answer.
    pool = ThreadPoolExecutor(count, thread_name_prefix="distmeta-pictures")
    waiting: deque[Future[list[Read]]] = deque()
    try:
        step = _batch(recipe)
        for start in range(0, len(paths), step):
            waiting.append(pool.submit(processes.ask, list(paths[start : start + step])))
            if len(waiting) >= count * _AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        processes.kill()  # at once, whatever they read; their threads see the end of the pipes
        pool.shutdown()
        processes.close()


def _batch(recipe: Recipe) -> int:
    """Pictures per request: few where they are large, or may have any size, since they wait in memory."""
    if recipe.size is None:
        return 1
    height, width = recipe.size
    return max(1, min(BATCH, _BATCH_BYTES // (3 * height * width)))


class _Processes:
    """One reading process for each thread that asks."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._lock = threading.Lock()
        self._started: list[subprocess.Popen[bytes]] = []
        self._ended = False
        self._mine = threading.local()

    def ask(self, paths: list[str]) -> list[Read]:
        """Have this thread's process read; it is started first if there is none."""
        process: subprocess.Popen[bytes] | None = getattr(self._mine, "process", None)
        if process is None:
            process = self._mine.process = self._start()
        assert process.stdin is not None, "pipes"
        assert process.stdout is not None, "pipes"
        try:
            pickle.dump(paths, process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            answer: list[Read] = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = process.wait()
            raise DataError(
                f"A process that reads pictures ended by itself (exit code {code}), at one of {paths[0]} to "
                f"{paths[-1]}: a file that breaks the decoder, or too little memory. Find it with --workers 1, or use "
                "fewer workers."
            ) from None
        return answer

    def kill(self) -> None:
        """End all processes; none is started after this."""
        with self._lock:
            self._ended = True
            for process in self._started:
                process.kill()

    def close(self) -> None:
        """Collect the ended processes; to be called when no thread asks."""
        for process in self._started:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._ended:
                raise EOFError("the build has ended")
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,  # ctrl-C reaches the parent alone, which ends the others
            )
            self._started.append(process)
        assert process.stdin is not None, "a pipe"
        with suppress(BrokenPipeError):  # a process that cannot start is found when it is asked
            for value in ((str(Path(__file__).resolve().parents[2]), sys.path), self._recipe):
                pickle.dump(value, process.stdin, pickle.HIGHEST_PROTOCOL)
        return process


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
