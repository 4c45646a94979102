"""``distmeta data``: build, encode, inspect and verify datasets of Arrow shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from distmeta.cli import console
from distmeta.cli.console import print_json
from distmeta.cli.options import Json
from distmeta.cli.progress import bar
from distmeta.errors import ConfigError

app = typer.Typer(
    help="Build, encode, inspect and verify datasets of Arrow shards.", no_args_is_help=True, rich_markup_mode=None
)


_SOURCES = ("omniglot", "omniglot-runs", "glyphs", "image-folder")


@app.command("build")
def build(
    source: Annotated[str, typer.Argument(metavar="omniglot|omniglot-runs|glyphs|image-folder", help="What to build.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the dataset; must not hold one yet.")],
    from_dir: Annotated[
        Path | None,
        typer.Option("--from", help="Folder with the official zips (omniglot*) or the images (image-folder)."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="omniglot: vinyals or background-evaluation; image-folder: 64/16/20 or a JSON of class lists."
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(min=4, help="Height and width in pixels.")] = None,
    instances: Annotated[int, typer.Option(min=2, help="glyphs: images per class.")] = 20,
    channels: Annotated[int | None, typer.Option(help="image-folder: 1 for grey, 3 for colour.")] = None,
    ink: Annotated[
        bool, typer.Option("--ink", help="image-folder: drawings, light or dark; they become bright ink on 0.")
    ] = False,
    min_images: Annotated[
        int | None, typer.Option(min=1, help="image-folder: leave out classes with fewer images.")
    ] = None,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="image-folder: leave out pictures that cannot be read; listed.")
    ] = False,
    allow_duplicates: Annotated[
        bool, typer.Option("--allow-duplicates", help="image-folder: even if two splits share a picture.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="image-folder: processes that read; all CPUs by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build a dataset: Omniglot (downloaded, or --from the zips), glyphs, or a folder of images.

    Folders: ROOT/split/class/*.png, ROOT/class/*.png with --split, both also nested (group/class), or
    ROOT/train.csv (val.csv, test.csv; columns filename, label) beside ROOT/images.
    """
    from distmeta import data
    from distmeta.config import did_you_mean

    _refuse_unused(
        source,
        {
            "--channels": channels is not None,
            "--ink": ink,
            "--min-images": min_images is not None,
            "--skip-corrupt": skip_corrupt,
            "--allow-duplicates": allow_duplicates,
            "--workers": workers is not None,
        },
    )
    with bar(f"building {source}", quiet=as_json) as progress:
        if source == "omniglot":
            if split not in (None, "vinyals", "background-evaluation"):
                raise ConfigError(f"--split {split} for omniglot; expected vinyals or background-evaluation.")
            chosen: Literal["vinyals", "background-evaluation"] = (
                "background-evaluation" if split == "background-evaluation" else "vinyals"
            )
            data.build_omniglot(out_dir, source=from_dir, split=chosen, size=size or 28, progress=progress)
        elif source == "omniglot-runs":
            if from_dir is None:
                raise ConfigError(
                    "omniglot-runs needs --from DIR, the folder with all_runs.zip, images_background.zip and "
                    "images_evaluation.zip."
                )
            data.build_omniglot_runs(out_dir, source=from_dir, size=size or 28, progress=progress)
        elif source == "glyphs":
            data.build_glyphs(out_dir, size=size or 28, instances=instances, progress=progress)
        elif source == "image-folder":
            if from_dir is None:
                raise ConfigError(
                    "image-folder needs --from ROOT, the folder with ROOT/class/*.png, ROOT/split/class/*.png or "
                    "ROOT/train.csv."
                )
            if channels not in (None, 1, 3):
                raise ConfigError(f"--channels {channels}; expected 1 or 3.")
            colours: Literal[1, 3] | None = None if channels is None else 1 if channels == 1 else 3
            data.build_image_folder(
                from_dir,
                out_dir,
                split=split,
                size=size,
                channels=colours,
                ink=ink,
                min_images=min_images or 1,
                skip_corrupt=skip_corrupt,
                allow_duplicates=allow_duplicates,
                workers=workers,
                progress=progress,
            )
        else:
            raise ConfigError(
                f"There is no source {source!r}.{did_you_mean(source, _SOURCES)} Give one of {', '.join(_SOURCES)}."
            )
    _show(out_dir, as_json)


@app.command("encode")
def encode(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Folder or name of a dataset of pictures.")],
    encoder: Annotated[
        str, typer.Option(metavar="FILE:FUNCTION", help="Python file, and its function that returns the network.")
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the features; an interrupted one is continued.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one per CPU when left out.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures in one forward pass, at most.")] = 16,
    device: Annotated[str, typer.Option(help="Where the encoder computes: cpu or cuda.")] = "cpu",
    encoder_classes: Annotated[
        Path | None,
        typer.Option(help="Text file with the classes that the encoder was trained on, one per line."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put every picture through a frozen encoder, once: a dataset of feature vectors with the same classes."""
    from distmeta import data

    with bar("encoding", quiet=as_json) as progress:
        data.encode(
            dataset,
            encoder,
            out_dir,
            workers=workers,
            batch_size=batch,
            device=device,
            encoder_classes=encoder_classes,
            progress=progress,
            say=lambda text: console.err.print(f"warning: {text}", style="yellow"),
        )
    _show(out_dir, as_json)


@app.command("inspect")
def inspect(directory: Annotated[Path, typer.Argument(metavar="DIR")], as_json: Json = False) -> None:
    """Show what a dataset holds."""
    _show(directory, as_json)


@app.command("verify")
def verify(directory: Annotated[Path, typer.Argument(metavar="DIR")], as_json: Json = False) -> None:
    """Read every byte of a dataset and compare it with the manifest."""
    from distmeta import data

    report = data.verify(directory)
    if as_json:
        print_json(
            {
                "ok": True,
                "fingerprint": report.fingerprint,
                "classes": sum(report.classes.values()),
                "images": sum(report.images.values()),
                "shards": report.shards,
                "bytes": report.bytes,
            }
        )
        return
    console.out.print(
        f"OK: {sum(report.classes.values()):,} classes, {sum(report.images.values()):,} images, "
        f"{report.shards} shards, {report.bytes / 2**20:.1f} MiB; every checksum agrees."
    )
    console.out.print(f"fingerprint {report.fingerprint}")


def _refuse_unused(source: str, given: dict[str, bool]) -> None:
    unused = [name for name, is_given in given.items() if is_given]
    if unused and source != "image-folder" and source in _SOURCES:
        raise ConfigError(f"{unused[0]} is for image-folder; {source} has no use for it. Leave it out.")


def _show(directory: Path, as_json: bool) -> None:
    from distmeta import data
    from distmeta.data.remarks import remarks
    from distmeta.data.splits import too_small

    facts = data.inspect(directory)
    if as_json:
        print_json(facts)
        return
    console.out.print(
        f"{facts['name']}: {facts['classes']:,} classes, {facts['images']:,} images of shape {facts['input_shape']} "
        f"{facts['dtype']} in {directory}"
    )
    from rich.table import Table

    table = Table(box=None)
    for column in ("split", "classes", "images", "shards", "MiB"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, row in facts["splits"].items():
        table.add_row(
            split, f"{row['classes']:,}", f"{row['images']:,}", str(row["shards"]), f"{row['bytes'] / 2**20:.1f}"
        )
    console.out.print(table)
    for line in remarks(facts["provenance"]):
        console.out.print(line)
    if warning := too_small({split: row["classes"] for split, row in facts["splits"].items()}, facts["provenance"]):
        console.out.print(warning)
    console.out.print(f"fingerprint {facts['fingerprint']}")
