"""What Ray raises, as errors of distmeta: seen, expected, the change that fixes it; Ray's own text is kept as raw."""

from __future__ import annotations

import re

from ray import exceptions

from distmeta.errors import (
    DistmetaError,
    RuntimeFailure,
    WorkerLost,
    WorkerOutOfMemory,
    first_sentence,
    foreign,
    line_of,
)
from distmeta.runtime.backend import SERVER, lost

_RESUME = "Then `distmeta resume RUN_DIR` goes on from the last checkpoint."

_STORE_FULL = f"Free disk in Ray's folder (/tmp, or RAY_TMPDIR elsewhere), or use fewer --workers. {_RESUME}"

# What Ray's text contains at a start that fails, and the fix.
_STARTS = (
    (
        r"exceeds /dev/shm size",
        "Enlarge /dev/shm (docker run --shm-size=4g), delete files there, or set "
        "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE=1 for a slower store on the disk.",
    ),
    (
        r"object store memory usage|object store memory size",
        "Set the object store to 75 MiB or more, and less than the memory.",
    ),
    (r"AF_UNIX path|socket path", "Set RAY_TMPDIR to a shorter path, such as /tmp/ray."),
    (r"Errno 28|No space left", "Free that disk, or set RAY_TMPDIR to a folder on another one."),
    (
        r"Errno (2|13|20|30)\b|Permission denied|Read-only",
        "Ray needs folders that it can write: set HOME and RAY_TMPDIR to such ones.",
    ),
    (
        r"Address already in use|[Pp]ort \d+ is (already )?(in use|taken|unavailable)|Errno 98",
        "Another program has that port: end it, or run again.",
    ),
    (r"auth.*token|AuthenticationError", "Set RAY_AUTH_TOKEN or RAY_AUTH_MODE=disabled."),
)


def did_not_start(error: Exception) -> RuntimeFailure:
    """The error for a cluster of this machine that did not start."""
    text = str(error)
    for pattern, fix in _STARTS:
        if re.search(pattern, text):
            return foreign(RuntimeFailure, "Ray did not start on this machine", error, f"{fix} Or use --backend local.")
    fix = "Run the command again (a busy machine can be too slow for it), or with --backend local."
    return foreign(RuntimeFailure, "Ray did not start on this machine", error, fix)


def cannot_reach(address: str, error: Exception) -> RuntimeFailure:
    """The error for a cluster that was named and is not there."""
    fix = "Start one with `ray start --head`, give its address, or run with --backend local."
    if isinstance(error, exceptions.AuthenticationError):
        fix = "Set RAY_AUTH_TOKEN to the cluster's token (`ray get-auth-token` on its head)."
    return foreign(RuntimeFailure, f"Could not reach the Ray cluster at {address!r}", error, fix)


def translate(cause: exceptions.RayError, text: str, name: str) -> DistmetaError:  # noqa: PLR0911 (a kind each)
    """The error for one of Ray's own.

    Args:
        cause: what Ray raised.
        text: all that it printed.
        name: of the actor that was called.

    Returns:
        A loss, which the pool makes up for, where a process or a value is gone; else an error that ends the run.
    """
    if isinstance(cause, exceptions.RayActorError):
        if cause.actor_init_failed:
            raw = text.strip()
            last = raw.splitlines()[-1] if raw else "no message"
            return RuntimeFailure(
                f"{name} could not start: it raised {first_sentence(last)} ({line_of(raw)}). Fix that line, then run "
                "the command again.",
                raw=raw,
            )
        why = _why(str(cause))
        if name != SERVER and re.search(r"low on memory|OUT_OF_MEMORY", str(cause)):
            return WorkerOutOfMemory(f"{name} died: {why}.", raw=text)
        return lost(name, f"died: {why}", raw=text)
    if isinstance(cause, exceptions.OutOfMemoryError):  # of Ray's own watch over the node, without the actor's name
        return WorkerOutOfMemory(f"{name} was ended by Ray: {first_sentence(str(cause))}.", raw=text)
    if isinstance(cause, exceptions.ObjectStoreFullError | exceptions.OutOfDiskError):
        return _ends("Ray has no room for results", cause, text, _STORE_FULL)
    if isinstance(cause, exceptions.RuntimeEnvSetupError):
        fix = f"Fix the environment that the job is given. {_RESUME}"
        return _ends(f"Ray could not set up {name}", cause, text, fix)
    if isinstance(cause, exceptions.AuthenticationError):
        fix = f"Set RAY_AUTH_TOKEN to the cluster's token (`ray get-auth-token` on its head). {_RESUME}"
        return _ends("The Ray cluster refused a call", cause, text, fix)
    # A value or a node is gone, and what was computed with it.
    return WorkerLost(f"A result was lost on its way: {first_sentence(str(cause))}.", raw=text)


def _ends(seen: str, cause: exceptions.RayError, text: str, fix: str) -> RuntimeFailure:
    error = foreign(RuntimeFailure, seen, cause, fix)
    error.raw += text  # with the traceback of the worker
    return error


def _why(text: str) -> str:
    """The sentence, among the facts about a dead actor, that gives the cause."""
    if found := re.search(r"Worker exit detail: (.+)", text):
        return first_sentence(found[1])
    facts = ("\t", exceptions.ActorDiedError.BASE_ERROR_MSG)
    own = [line for line in text.splitlines() if line.strip() and not line.startswith(facts)]
    return first_sentence("\n".join(own) or text)
