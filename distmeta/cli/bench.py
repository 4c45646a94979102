"""The commands that measure this machine: bench inner-loop, peers, plain, sampling, overhead, scaling, and so on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from distmeta.cli import console
from distmeta.cli.console import print_json
from distmeta.cli.options import Address, Data, Json, Set, load, numbers, overrides, with_options
from distmeta.cli.progress import watching
from distmeta.errors import ConfigError

if TYPE_CHECKING:
    from distmeta.bench import Benchmark, Change, Record
    from distmeta.bench.cases import What

app = typer.Typer(
    help="Measure speed, memory and losses on this machine; variants take turns.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_LABELS = {"lost_share": "added, share of local"}
"""Figures whose names in the record are not their labels in the table."""

AnyJob = Annotated[
    Path | None, typer.Argument(metavar="[JOB.py]", help="Job file whose case is measured; a built-in one without.")
]


@dataclass(frozen=True)
class BenchOptions:
    """Options of every benchmark."""

    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Seconds for the repetitions; starting and warming up take up to half of these seconds, and come on "
            "top where they need more. 20 when left out; startup, memory, plain 60; peers 120.",
        ),
    ] = None
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Keep all repetitions, machine, versions.")] = (
        None
    )
    png: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw a picture.")] = None
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN.json", help="An earlier --out of the same case; exit code 1 if slower now."),
    ] = None
    tolerance: Annotated[float, typer.Option(min=0, help="Smallest change that counts with --against, per cent.")] = 5.0
    as_json: Json = False


@app.command("inner-loop")
@with_options
def inner_loop(
    options: BenchOptions,
    job: AnyJob = None,
    chunks: Annotated[str, typer.Option(metavar="1,4,8,16", help="Tasks per vectorised call.")] = "1,4,8,16",
    steps: Annotated[
        str | None, typer.Option(metavar="1,5", help="Inner steps; 1,5, or those of JOB, when left out.")
    ] = None,
    threads: Annotated[
        str | None, typer.Option(metavar="1,2", help="CPU threads; one and all cores when left out.")
    ] = None,
    learner: Annotated[
        str | None, typer.Option(help="Another algorithm on the built-in case, by class name; MAML when left out.")
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where it is computed.")] = "cpu",
    settings: Set = None,
    data_dir: Data = None,
) -> None:
    """Measure tasks/s of a learner and its model's meta-gradient, beside the limit of matrix products."""
    if learner is not None and job is not None:
        raise ConfigError(
            f"--learner {learner} and {job}: a job has its own learner; expected one of them. Leave one out."
        )

    def build() -> Benchmark:
        from distmeta.bench import cases
        from distmeta.bench.inner_loop import InnerLoop

        what = _what(job, settings, data_dir, lambda: cases.random_images(learner))
        usual = (1, 5) if job is None and cases.has_inner_steps(cases.experiment_of(what)) else None
        return InnerLoop(
            what,
            chunks=numbers("--chunks", chunks, 1),
            steps=usual if steps is None else numbers("--steps", steps, 0),
            threads=None if threads is None else numbers("--threads", threads, 1),
            device=device,
        )

    _run(build, options, settings)


@app.command("peers")
@with_options
def peers(
    options: BenchOptions,
    python: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Interpreter of an environment with the peers; this one when left out."),
    ] = None,
    names: Annotated[
        str,
        typer.Option(
            "--cases",
            metavar="omniglot-1,...",
            help="omniglot, omniglot15 or miniimagenet (over 24 GiB at 5), and inner steps.",
        ),
    ] = "omniglot-1,omniglot-5",
    which: Annotated[str, typer.Option("--peers", metavar="higher,...", help="Which peers; vmap is torch alone.")] = (
        "learn2learn,higher,torchopt,vmap"
    ),
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of a peer, workers of distmeta; all cores when left out.")
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where it is computed.")] = "cpu",
    address: Address = None,
    settings: Set = None,
) -> None:
    """Measure MAML's step here and in learn2learn, higher, TorchOpt and plain vmap, where they compute the same."""

    def build() -> Benchmark:
        from distmeta.bench.peers import Peers

        return Peers(
            [name.strip() for name in names.split(",")],
            overrides=overrides(settings, None, None),
            peers=[name.strip() for name in which.split(",")],
            python=python,
            threads=threads,
            device=device,
            address=address,
        )

    _run(build, options, settings)


@app.command("plain")
@with_options
def plain(
    options: BenchOptions,
    learners: Annotated[
        str | None, typer.Option(metavar="ProtoNet,NTM,...", help="Which algorithms; all of them when left out.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Measure learners beside the plainest PyTorch code for the same batch, where both compute the same gradient."""

    def build() -> Benchmark:
        from distmeta.bench.plain import Plain

        names = None if learners is None else [name.strip() for name in learners.split(",")]
        return Plain(names, threads=threads)

    _run(build, options)


@app.command("sampling")
@with_options
def sampling(
    options: BenchOptions,
    job: AnyJob = None,
    batches: Annotated[str, typer.Option(metavar="32", help="Tasks drawn in one call.")] = "32",
    settings: Set = None,
    data_dir: Data = None,
) -> None:
    """Measure microseconds per episode from warm data; without JOB, of glyphs, 5-way 1-shot with 15 queries."""

    def build() -> Benchmark:
        from distmeta.bench import cases
        from distmeta.bench.sampling import Sampling

        return Sampling(_what(job, settings, data_dir, cases.glyphs), batches=numbers("--batches", batches, 1))

    _run(build, options, settings)


@app.command("overhead")
@with_options
def overhead(
    options: BenchOptions,
    job: AnyJob = None,
    address: Address = None,
    settings: Set = None,
    data_dir: Data = None,
) -> None:
    """Measure a training step in this process and on Ray with one worker; without JOB, of MAML on sinusoids."""

    def build() -> Benchmark:
        from distmeta.bench import cases
        from distmeta.bench.overhead import Overhead

        return Overhead(_what(job, settings, data_dir, cases.sinusoids), address=address)

    _run(build, options, settings)


@app.command("scaling")
@with_options
def scaling(
    options: BenchOptions,
    job: AnyJob = None,
    workers: Annotated[
        str | None, typer.Option(metavar="1,2", help="Numbers of workers; 1, 2, 4, ... to all cores when left out.")
    ] = None,
    address: Address = None,
    settings: Set = None,
    data_dir: Data = None,
) -> None:
    """Measure training steps/s on Ray by workers of one thread, and their efficiency."""

    def build() -> Benchmark:
        from distmeta.bench import cases
        from distmeta.bench.overhead import Scaling

        what = _what(job, settings, data_dir, cases.random_images)
        return Scaling(what, workers=None if workers is None else numbers("--workers", workers, 1), address=address)

    _run(build, options, settings)


@app.command("startup")
@with_options
def startup(options: BenchOptions, address: Address = None) -> None:
    """Measure seconds until --help, the import, and the first step of a local run and of one on Ray."""

    def build() -> Benchmark:
        from distmeta.bench.startup import Startup

        return Startup(address=address)

    _run(build, options)


@app.command("memory")
@with_options
def memory(
    options: BenchOptions,
    job: AnyJob = None,
    steps: Annotated[str | None, typer.Option(metavar="1,5,10", help="Inner steps; 1,5,10 when left out.")] = None,
    settings: Set = None,
    data_dir: Data = None,
) -> None:
    """Measure peak memory above the model by inner steps, each time in a fresh process."""

    def build() -> Benchmark:
        from distmeta.bench import cases
        from distmeta.bench.memory import Memory

        what = _what(job, settings, data_dir, cases.random_images)
        return Memory(what, steps=None if steps is None else numbers("--steps", steps, 0))

    _run(build, options, settings)


def _what(job: Path | None, settings: list[str] | None, data_dir: str | None, built_in: Callable[[], Any]) -> What:
    """The job, or the built-in case with the same settings applied."""
    if job is not None:
        return load(job, settings, None, data_dir)
    found: What = built_in().with_overrides(overrides(settings, None, data_dir))
    return found


def _run(build: Callable[[], Benchmark], options: BenchOptions, settings: list[str] | None = None) -> None:
    """Check everything, measure, show, write, compare."""
    for option, path in (("--out", options.out), ("--png", options.png)):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{option} {path}: there is no folder {path.parent}; expected one. Make it first.")
    with watching(options.as_json) as view:
        view.phase("loading")
        from distmeta.bench import Record, compare
        from distmeta.bench.comparing import require_comparable

        earlier = None if options.against is None else Record.read(options.against)
        benchmark = build()
        if earlier is not None:
            require_comparable(benchmark.kind, benchmark.case, earlier, str(options.against))
        record = benchmark.run(options.seconds, view.phase, overrides(settings, None, None))
    changes = (
        None
        if earlier is None
        else compare(record, earlier, tolerance=options.tolerance / 100, name=str(options.against))
    )
    if options.out is not None:
        record.write(options.out)
    if options.png is not None:
        from distmeta.bench.picture import plot

        plot(record, options.png)
    if options.as_json:
        found = record.to_dict()
        print_json(found if changes is None else found | {"changes": [change.to_dict() for change in changes]})
    else:
        _show(record, options)
        if earlier is not None and changes is not None:
            _show_changes(record, earlier, changes, options)
    if changes is not None and any(change.verdict == "worse" for change in changes):
        raise typer.Exit(1)


def _show(record: Record, options: BenchOptions) -> None:
    from distmeta.bench.wording import counted

    console.out.print(record.title)
    figures = list(dict.fromkeys(name for row in record.rows for name in row.figures))
    table = [
        (
            *record.rows[0].at,
            record.unit,
            "quartiles",
            "n",
            *(_LABELS.get(name, name.replace("_", " ")) for name in figures),
        )
    ]
    for row in record.rows:
        low, middle, high = row.quartiles
        table.append(
            (
                *map(str, row.at.values()),
                _number(middle),
                f"{_number(low)} to {_number(high)}",
                str(len(row.repetitions)),
                *(_figure(name, row.figures.get(name)) for name in figures),
            )
        )
    console.rows(table)
    for limit in record.limits:
        low, middle, high = limit.quartiles
        rate = f"{_number(middle)} GFLOP/s ({_number(low)} to {_number(high)})"
        console.out.print(f"matmul   {rate} with {counted(limit.at['threads'], 'thread')}")
    machine = record.machine
    load = machine["load_average"]
    console.out.print(
        f"machine  {machine.get('gpu') or machine['cpu']}, {counted(machine['cores'], 'core')}, "
        f"torch {machine['torch']}, distmeta {machine['distmeta']}"
        + ("" if load is None else f", load average {load:g}")
    )
    for text in record.notes:
        console.out.print(f"note     {text}")
    for word, path in (("kept in", options.out), ("picture", options.png)):
        if path is not None:
            console.out.print(f"{word}  {path}")


def _show_changes(record: Record, earlier: Record, changes: list[Change], options: BenchOptions) -> None:
    from distmeta.bench.wording import counted

    console.out.print(f"against {options.against}, of {earlier.machine.get('time', 'an unknown time')}")
    table = [(*changes[0].at, "then", "now", "times as good", "95 % interval", "")]
    for change in changes:
        low, high = change.interval
        then, now = _number(change.then), _number(change.now)
        word = f"{change.word} ({change.why})" if change.why else change.word
        table.append(
            (*map(str, change.at.values()), then, now, f"{change.ratio:.3f}", f"{low:.3f} to {high:.3f}", word)
        )
    console.rows(table)
    for limit in record.limits:
        before = next((one for one in earlier.limits if one.at == limit.at), None)
        if before is not None:
            console.out.print(
                f"matmul   {_number(before.median)} GFLOP/s then, {_number(limit.median)} now, with "
                f"{counted(limit.at['threads'], 'thread')}"
            )
    for key in ("cpu", "gpu", "cores", "torch"):
        was, is_ = earlier.machine.get(key), record.machine.get(key)
        if was != is_:
            console.note(f"another machine or torch: {key} {was} then, {is_} now")


def _number(value: float) -> str:
    """Three digits, more where they are whole."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if name.endswith(("share", "efficiency")) else _number(value)
