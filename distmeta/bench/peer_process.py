"""Another library in a Python process of its own, which is asked to compute and to time itself."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

from distmeta.errors import ConfigError, RuntimeFailure

_PROGRAM = Path(__file__).with_name("peer_loops.py")
# Not `python FILE`: then this folder would be searched first, and statistics.py here be taken for Python's.
_START = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


class Peer:
    """One library in its process; see :mod:`distmeta.bench.peer_loops` for what it can be asked.

    Args:
        name: of its loop.
        python: the interpreter of an environment that has the library and torch.

    Raises:
        ConfigError: there is no such interpreter.
        RuntimeFailure: it ends without an answer.
    """

    def __init__(self, name: str, python: Path) -> None:
        self.name = name
        program = shutil.which(python)
        if program is None:
            raise ConfigError(
                f"--python {python} is no program; expected the interpreter of an environment with the peers. Give its "
                "path, such as peers/bin/python."
            )
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close())
        # As many threads as its users have: not the one of our workers.
        surroundings = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        self._process = subprocess.Popen(
            [os.path.abspath(program), "-c", _START, str(_PROGRAM), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=tempfile.gettempdir(),
            env=surroundings,
        )
        try:
            hello = self._answer()
        except BaseException:
            self.close()
            raise
        self.absent = str(hello.get("absent", ""))
        """Why the library cannot be used; empty where it can."""
        self.version, self.torch = str(hello.get("version", "")), str(hello.get("torch", ""))

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Args:
            do: which one.
            given: its arguments, JSON-ready.

        Raises:
            RuntimeFailure: the library raised, or its process has ended.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer tells it better
            self._process.stdin.write(json.dumps({"do": do, **given}) + "\n")
            self._process.stdin.flush()
        reply = self._answer()
        if "error" in reply:
            raise RuntimeFailure(f"{self.name} raised {reply['error']}. Expected an answer to {do!r}.")
        return reply

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            told = self._errors.read().decode(errors="replace").strip()
            last = told.splitlines()[-1] if told else "no message"
            raise RuntimeFailure(
                f"The Python process of {self.name} ended with code {code}: {last[:200]}. Expected an answer. Import "
                "torch and the library in that interpreter by hand.",
                raw=told,
            )
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it computes still
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
