"""The options that several commands share, and what they mean."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from distmeta.errors import ConfigError

if TYPE_CHECKING:
    from distmeta.experiment.job import Job
    from distmeta.run.place import Place, Watch

SplitName = Literal["meta_train", "meta_validation", "meta_test"]

JobFile = Annotated[Path, typer.Argument(metavar="JOB.py", help="Job file with `experiment = Experiment(...)`.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run, as `distmeta train` printed it.")]
NewRunDir = Annotated[
    Path | None, typer.Option("--run-dir", help="New folder for the run; runs/NAME-TIME when left out.")
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeat for more.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes; as many as fit when left out.")]
BackendName = Annotated[
    Literal["ray", "local"], typer.Option("--backend", help="ray, or local: everything in this process.")
]
Address = Annotated[
    str | None,
    typer.Option(help="Running Ray cluster: auto or HOST:PORT; one of this machine is started when left out."),
]
Data = Annotated[
    str | None, typer.Option("--data", help="Dataset folder or name, in place of the job's own and of DISTMETA_DATA.")
]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow; MLFLOW_TRACKING_URI or MLflow's default when left out.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for machines.")]
ChangedCode = Annotated[
    bool, typer.Option("--changed-code", help="Use the run's copy of the job file though it was changed since.")
]


@dataclass(frozen=True)
class RunOptions:
    """Options of every command that trains; see :func:`with_options`."""

    workers: Workers = None
    backend: BackendName = "ray"
    address: Address = None
    settings: Set = None
    data_dir: Data = None
    tracking_uri: TrackingUri = None
    tracking: Annotated[bool, typer.Option("--tracking/--no-tracking", help="Record the run in MLflow.")] = True
    tracking_required: Annotated[bool, typer.Option(help="Fail when MLflow cannot be reached at the start.")] = False
    as_json: Json = False

    def overrides(self) -> dict[str, Any]:
        """Settings by dotted key."""
        return overrides(self.settings, self.workers, self.data_dir)

    def place(self, watch: Watch) -> Place:
        """Where to compute and record."""
        from distmeta.run.place import Place

        return Place(self.backend, self.address, self.tracking, self.tracking_uri, self.tracking_required, watch)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command with a parameter ``options`` of a dataclass, such as :class:`RunOptions`, one for each field."""
    own = inspect.signature(command, eval_str=True)
    kind = own.parameters["options"].annotation
    hints = get_type_hints(kind, include_extras=True)
    spread = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(kind)
    ]
    kept = [p.replace(kind=p.KEYWORD_ONLY) for p in own.parameters.values() if p.name != "options"]

    @wraps(command)
    def spread_out(**values: Any) -> None:
        options = kind(**{f.name: values.pop(f.name) for f in fields(kind)})
        command(**values, options=options)

    parameters = sorted([*kept, *spread], key=lambda p: p.default is not p.empty)
    spread_out.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread_out.__annotations__ = {p.name: p.annotation for p in parameters}
    del spread_out.__wrapped__  # typer would read the signature of what it wraps
    return spread_out


def overrides(settings: list[str] | None, workers: int | None, data_dir: str | None) -> dict[str, Any]:
    """The settings that ``--set``, ``--workers`` and ``--data`` change, by dotted key."""
    from distmeta.config import parse_overrides

    found = parse_overrides(settings or ())
    if workers is not None:
        found["runtime.workers"] = workers
    if data_dir is not None:
        found["tasks.data"] = str(Path(data_dir).resolve()) if os.path.exists(data_dir) else data_dir
    return found


def load(job: Path, settings: list[str] | None, workers: int | None, data_dir: str | None) -> Job:
    """Run a job file, with ``DISTMETA_DATA`` as the default for its dataset."""
    from distmeta.experiment.job import load_job

    given = os.environ.get("DISTMETA_DATA")
    defaults = overrides(None, None, given) if given else {}
    return load_job(job, overrides(settings, workers, data_dir), defaults=defaults)


def numbers(option: str, text: str, least: int) -> tuple[int, ...]:
    """``"1,2,5"`` as numbers in ascending order, each once.

    Raises:
        ConfigError: these are no whole numbers, or one is below ``least``.
    """
    try:
        values = sorted({int(word) for word in text.split(",")})
    except ValueError:
        values = []
    if not values or values[0] < least:
        raise ConfigError(
            f"{option} {text!r}: expected whole numbers of at least {least} with commas between them, such as "
            f"{option} 1,2,5,10."
        )
    return tuple(values)
