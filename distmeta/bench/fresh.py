"""Fresh Python processes, in which nothing has been imported and no memory has been used."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from distmeta.errors import RuntimeFailure, first_sentence

READY = "distmeta-bench-ready"
"""The line by which a process shows that it has done what is timed."""


def run(arguments: Sequence[str], extra: Mapping[str, str] | None = None) -> tuple[float, str]:
    """Run Python with this package, to its end.

    Args:
        arguments: of the interpreter, such as ``["-c", "import distmeta"]``.
        extra: environment variables, beside those of this process.

    Returns:
        Seconds until the line :data:`READY`, or until the end where there is none; and the standard output.

    Raises:
        RuntimeFailure: the process failed.

    Example:
        >>> seconds, text = run(["-c", "print('done')"])
        >>> seconds > 0, text.strip()
        (True, 'done')
    """
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, **(extra or {})}
    started = time.perf_counter()
    seconds, lines = None, []
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.strip() == READY and seconds is None:
                    seconds = time.perf_counter() - started
                lines.append(line)
        except BaseException:
            process.terminate()
            raise
    total, text = time.perf_counter() - started, "".join(lines)
    if process.returncode:
        command = " ".join(("python", *arguments))
        raise RuntimeFailure(
            f"`{command[:80]}` ended with code {process.returncode}: {first_sentence(lines[-1] if lines else '')}. "
            "Expected 0. Run it by hand to see all of its output.",
            raw=text,
        )
    return seconds or total, text
