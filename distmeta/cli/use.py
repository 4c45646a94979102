"""The commands that use a finished run: predict, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distmeta.cli import console
from distmeta.cli.console import note, print_json
from distmeta.cli.options import Json, RunDir, TrackingUri
from distmeta.cli.progress import watching
from distmeta.errors import ConfigError, listed

if TYPE_CHECKING:
    from distmeta.serving.predicting import Answers

Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Run directory, export, runs:/RUN_ID or models:/NAME@ALIAS.")
]


def predict(
    source: Source,
    support: Annotated[
        Path, typer.Option(metavar="DIR", help="Examples: a folder of pictures for each class, or a CSV file.")
    ],
    query: Annotated[
        Path, typer.Option(metavar="DIR", help="What to ask about: pictures, folders as above, or a CSV file.")
    ],
    target: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of a CSV file that holds the label, or the number.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw examples, queries and probabilities.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Learn a new task from a few labelled examples, and answer about others.

    CSV files begin with a line of names; the label is the column of --target, else `label`, else the last one.
    """
    from distmeta.serving.examples import read_examples

    known = read_examples(support, labelled=True, target=target)
    asked = read_examples(query, labelled=False, like=known, target=target)
    if picture is not None:
        _require_picture(picture, known.pictures)
    with watching(as_json) as view:
        view.phase(f"loading {source}")
        from distmeta.serving.loading import load
        from distmeta.serving.predicting import answer

        predictor = load(source)
        note(predictor.unfinished)
        view.phase(f"learning from {len(known.names)} examples")
        found = answer(predictor, known, asked)
    if asked.ignored:
        note(f"{query} has columns that the support examples lack, and which are ignored: {listed(asked.ignored)}")
    if len(found.classes) == 1:
        note(
            f"the support set has one class, {found.classes[0]!r}: it is the answer to everything, "
            "with 100 %. Give examples of two classes or more."
        )
    if picture is not None:
        _draw(found, picture, predictor.preprocessing.ink)
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found, picture)


def export(
    run_dir: RunDir,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New folder for the export.")] = None,
    register: Annotated[
        str | None, typer.Option(metavar="NAME", help="Register it in MLflow as a model of this name.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Give the registered version an alias, such as champion.")] = None,
    requirement: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LINE",
            help="A line for the registered model's requirements; repeat for more. One that names distmeta replaces "
            "the copy of the package that goes with the model.",
        ),
    ] = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Write a finished run as a folder without pickles, or register it in MLflow."""
    if out is None and register is None:
        raise ConfigError("Nothing to do: expected --out DIR, --register NAME, or both. Give one.")
    for option, value in (("--alias", alias), ("--requirement", requirement)):
        if value and register is None:
            raise ConfigError(f"{option} is for a registered model. Give --register NAME too, or leave it out.")
    if register is not None:
        from distmeta.tracking.tracking_uri import require_store

        require_store(tracking_uri)
    facts: dict[str, object] = {}
    with watching(as_json) as view:
        if out is not None:
            view.phase(f"exporting {run_dir}")
            from distmeta.serving.export import export as write

            facts["export"] = str(write(run_dir, out))
        if register is not None:
            view.phase(f"registering {register}")
            from distmeta.serving.mlflow_model import register as register_model

            done = register_model(
                run_dir, register, alias=alias, tracking_uri=tracking_uri, requirements=tuple(requirement or ())
            )
            facts |= done.to_dict()
    from distmeta.run.directory import RunDirectory
    from distmeta.run.finished_run import trained_checkpoints, unfinished

    directory = RunDirectory.open(run_dir)
    note(unfinished(directory, trained_checkpoints(directory)[0]))
    if as_json:
        print_json(facts)
        return
    for name, fact in facts.items():
        if fact:
            console.out.print(f"{name.replace('_', ' '):<9} {fact}")


def _show(found: Answers, picture: Path | None) -> None:
    """Print the answers as a table; on a terminal it has lines, in a pipe it is never cut."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if console.out.is_terminal else None, pad_edge=False)
    known = found.query.labels
    heads = [
        "input",
        *(
            ["label", "probability", "runner-up", ""]
            if found.classes
            else ["value", *(["90 % interval"] if found.interval else [])]
        ),
    ]
    for head in (*heads, *(["true"] if known is not None else [])):
        table.add_column(head, overflow="fold", justify="right" if head in ("probability", "", "value") else "left")
    for row, name in enumerate(found.query.names):
        if found.classes:
            (label, first), *others = found.ranked(row)
            second = (others[0][0], _percent(others[0][1])) if others else ("", "")
            cells = [name, label, _percent(first), *second]
        else:
            cells = [name, f"{found.values[row, 0]:.6g}"]
            if found.interval is not None:
                cells.append(" to ".join(f"{end[row, 0]:.6g}" for end in found.interval))
        wrong = known is not None and bool(found.classes) and known[row] != cells[1]
        if known is not None:
            cells.append(known[row])
        table.add_row(*cells, style="red" if wrong else None)
    console.out.print(table)
    if found.accuracy is not None and known is not None:
        right = sum(a == b for a, b in zip(found.labels, known, strict=True))
        console.out.print(f"accuracy  {_percent(found.accuracy)} ({right} of {len(known)})")
    if picture is not None:
        console.out.print(f"picture   {picture}")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _require_picture(path: Path, pictures: bool) -> None:
    """Raise where the picture could not be drawn or written, before anything is computed."""
    if not pictures:
        raise ConfigError(f"--picture {path}: the examples are rows of numbers, nothing to draw. Leave it out.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"--picture {path} cannot be written; expected a file in a folder that exists.")


def _draw(found: Answers, path: Path, ink: bool) -> None:
    from distmeta.figures.answers import MOST, draw_answers

    count = len(found.query.names)
    first = f", the first {MOST} of them" if count > MOST else ""
    try:
        draw_answers(
            path,
            title=f"{found.name}: {len(found.classes)} classes learned from {len(found.support.names)} pictures, "
            f"{count} asked{first}",
            classes=found.classes,
            support=found.support_x,
            support_labels=found.support.labels or (),
            queries=found.query_x,
            names=found.query.names,
            probabilities=found.values,
            truth=found.query.labels,
            ink=ink,
        )
    except OSError as error:
        raise ConfigError(f"--picture {path} cannot be written: {error}. Give another file.") from None
