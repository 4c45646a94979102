"""``distmeta submit``: a job file to a running Ray cluster, by Ray's job API, done right."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distmeta.errors import ConfigError, RuntimeFailure
from distmeta.experiment.job import load_job
from distmeta.tracking.git_state import git_tags


@dataclass(frozen=True)
class Submission:
    """A submitted job.

    Args:
        id: Ray's submission id.
        run_dir: where the run is on the cluster's head node.
        status: ``"PENDING"`` when not waited for, else ``"SUCCEEDED"``, ``"FAILED"`` or ``"STOPPED"``.
    """

    id: str
    run_dir: str
    status: str


def submit(
    job: Path | str,
    *,
    address: str,
    overrides: Mapping[str, Any] | None = None,
    run_dir: str | None = None,
    tracking_uri: str | None = None,
    wait: bool = True,
    echo: Callable[[str], None] = print,
) -> Submission:
    """Send the job file with the folder it is in, start ``distmeta train`` on the cluster, follow its log.

    The git commit is read here, since the cluster gets no ``.git``. The cluster's Python must have distmeta installed.

    Args:
        job: the job file; its folder travels with it.
        address: of the cluster's dashboard, ``http://HOST:8265``.
        overrides: settings by dotted key, as for ``distmeta train --set``.
        run_dir: on the head node, absolute or below ``~/``, the home there; on a cluster of this machine ``runs/ID``
            here when left out, elsewhere ``~/distmeta/runs/ID`` there.
        tracking_uri: of MLflow; ``MLFLOW_TRACKING_URI`` when left out, or MLflow's default store here on a cluster of
            this machine.
        wait: follow the log to the end.
        echo: receives the log.

    Raises:
        ConfigError: the job file is not one, an override does not fit, or the address is not one.
        RuntimeFailure: the cluster does not answer or refuses, or is lost while its log is followed.
        KeyboardInterrupt: passed on while following the log; the job goes on.
    """
    _present_token()
    from aiohttp import ClientError
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    for chatty in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.working_dir"):
        logging.getLogger(f"ray.{chatty}").setLevel(logging.ERROR)  # what it packs, that it leaves .git out
    path = Path(job).resolve()
    load_job(path, overrides)  # fail here rather than on the cluster
    host = urlsplit(address).hostname
    if not address.startswith(("http://", "https://")) or host is None:
        raise ConfigError(f"--address {address!r} is not the address of a dashboard; expected http://HOST:8265.")
    here = host in ("localhost", "127.0.0.1", "::1")
    if run_dir is not None and here and not run_dir.startswith("~/"):  # "here" may be the near end of a tunnel
        run_dir = str(Path(run_dir).expanduser().resolve())
    if run_dir is not None and not run_dir.startswith(("/", "~/")):
        raise ConfigError(f"--run-dir {run_dir} is on the head node; expected an absolute path, or one below ~/.")
    name = f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    # "~" is expanded by the shell that Ray starts the entrypoint with, on the head node.
    target = run_dir or (str(Path("runs", name).resolve()) if here else f"~/distmeta/runs/{name}")
    uri = (
        tracking_uri
        or os.environ.get("MLFLOW_TRACKING_URI")
        or (f"sqlite:///{Path('mlflow.db').resolve()}" if here else "")
    )
    tags = git_tags(path.parent)
    environment = {
        "DISTMETA_GIT_SHA": tags.get("mlflow.source.git.commit", ""),
        "DISTMETA_GIT_BRANCH": tags.get("mlflow.source.git.branch", ""),
        "DISTMETA_GIT_DIRTY": tags.get("distmeta.git_dirty", ""),
        "MLFLOW_TRACKING_URI": uri,
        "PYTHONUNBUFFERED": "1",
    }
    settings = [word for key, value in (overrides or {}).items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words = ["distmeta", "train", path.name, "--address", "auto", *settings]
    home = "~/" * target.startswith("~/")  # for the head's shell to expand
    entrypoint = f"python -m {shlex.join(words)} --run-dir {home}{shlex.quote(target.removeprefix(home))}"
    try:
        client = JobSubmissionClient(address)
        send = partial(
            client.submit_job,
            entrypoint=entrypoint,
            submission_id=name,
            runtime_env={
                "working_dir": str(path.parent),
                "excludes": ["runs/", "mlruns/", "mlflow.db", "*.arrow"],
                "env_vars": {key: value for key, value in environment.items() if value},
            },
            metadata={"job_file": path.name, "git_sha": environment["DISTMETA_GIT_SHA"]},
            entrypoint_num_cpus=0,
        )
        _when_ready(send, echo)
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise RuntimeFailure(
            f"The cluster at {address} did not take the job: {reason}. Start one with `ray start --head`, check the "
            "address of its dashboard, and where it asks for a token give that of its head node: RAY_AUTH_MODE=token "
            "RAY_AUTH_TOKEN=..."
        ) from None
    echo(f"Submitted {name}: {entrypoint}")
    if not wait:
        return Submission(name, target, "PENDING")

    async def follow() -> None:
        async for lines in client.tail_job_logs(name):
            echo(lines.rstrip("\n"))

    try:
        asyncio.run(follow())
        while not (status := client.get_job_status(name)).is_terminal():
            time.sleep(0.5)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"The job goes on. Follow it with: ray job logs {name} --address {address} --follow; end it with: "
            f"ray job stop {name} --address {address}"
        ) from None
    except (ClientError, OSError, RuntimeError) as error:
        raise RuntimeFailure(
            f"The connection to {address} was lost ({str(error).strip() or type(error).__name__}); the job may go on. "
            f"When the cluster answers again, follow it with: ray job logs {name} --address {address} --follow"
        ) from None
    return Submission(name, target, status.value)


def _when_ready(send: Callable[[], Any], echo: Callable[[str], None], *, patience: float = 60.0) -> None:
    """Call ``send``; repeat it while a cluster that has only just started has no agent yet that takes jobs."""
    deadline, announced = time.monotonic() + patience, False
    while True:
        try:
            send()
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        else:
            return
        if not announced:
            echo("The cluster has only just started; waiting until it takes jobs.")
            announced = True
        time.sleep(1.0)


def _present_token() -> None:
    """Set RAY_AUTH_MODE=token where there is a token: Ray's job client sends it only then."""
    here = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if here or Path("~/.ray/auth_token").expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
