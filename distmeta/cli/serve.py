"""The command that serves a trained learner over HTTP."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from distmeta.cli import console
from distmeta.cli.console import print_json
from distmeta.cli.options import Address, Json
from distmeta.cli.progress import interruptible


def serve(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A run, a folder of `distmeta export`, or models:/NAME@ALIAS.")
    ],
    host: Annotated[str, typer.Option(help="Interface to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 for a free one.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that answer, one CPU each.")] = 1,
    max_tasks: Annotated[int, typer.Option(min=1, help="Learned tasks that are kept, at most.")] = 1000,
    keep_minutes: Annotated[float, typer.Option(help="How long one is kept after its last use.")] = 60,
    max_body: Annotated[float, typer.Option(help="MiB of a request, at most.")] = 32,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of a request's pictures, at most.")] = 50_000_000,
    max_classes: Annotated[int, typer.Option(min=2, help="Classes of a task, at most.")] = 100,
    max_examples: Annotated[int, typer.Option(min=1, help="Examples of a task, and queries, at most.")] = 500,
    batch: Annotated[
        bool, typer.Option("--batch/--no-batch", help="Learn tasks that arrive together in one call.")
    ] = True,
    batch_wait_ms: Annotated[float, typer.Option(min=0, help="How long one waits for others.")] = 10,
    max_batch: Annotated[int, typer.Option(min=1, help="Tasks in one call, at most.")] = 32,
    token: Annotated[
        str | None,
        typer.Option(envvar="DISTMETA_SERVE_TOKEN", help="Requests need the header Authorization: Bearer TOKEN."),
    ] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Serve a trained learner over HTTP, with a page to draw or drop examples on, until ctrl-C."""
    began = time.monotonic()
    with interruptible():
        from distmeta.errors import ConfigError
        from distmeta.serving.loading import load
        from distmeta.serving.settings import ServiceSettings

        settings = ServiceSettings(
            max_tasks=max_tasks,
            keep_minutes=keep_minutes,
            max_body=max_body,
            max_pixels=max_pixels,
            max_classes=max_classes,
            max_examples=max_examples,
            batch=batch,
            batch_wait_ms=batch_wait_ms,
            max_batch=max_batch,
            token=token or None,
        )
        try:
            import fastapi  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"{error}: serving needs Ray Serve. Run: pip install 'distmeta[serve]'") from None
        console.err.print(f"loading {source}", style="dim")
        predictor = load(source)  # before Ray starts: what cannot be served fails here
        console.note(predictor.unfinished)
        console.err.print("starting Ray Serve", style="dim")
        from distmeta.serving.service import serving

    at = serving(source, settings, host=host, port=port, replicas=replicas, address=address)
    try:
        with at as service:
            if as_json:
                print_json({"url": service.url, "logs": service.logs, "pid": os.getpid()})
            else:
                most = predictor.most_classes
                console.out.print(f"{predictor}, {f'at most {most} classes' if most else 'any number of classes'}")
                console.out.print(f"page  {service.url}/")
                console.out.print(f"api   {service.url}/docs   (POST /predict, POST /tasks, GET /model)")
                console.out.print(f"logs  {service.logs}")
            if host not in ("127.0.0.1", "localhost", "::1") and settings.token is None:
                console.err.print("note: anybody who reaches this port may use it; --token TOKEN asks for one.")
            console.err.print(f"ready after {time.monotonic() - began:.0f} s; ctrl-C ends it", style="dim")
            console.flush()
            try:
                service.wait()
            except KeyboardInterrupt:
                console.err.print("answering what is in flight, then leaving Ray", style="dim")
    except KeyboardInterrupt:
        console.err.print("Interrupted.")
        raise typer.Exit(130) from None
