"""Lake's runs, the one-shot runs of Lake, Salakhutdinov, Tenenbaum (2015), with the data to train on for them.

The official ``all_runs.zip`` has 20 runs of 20 trials. A run has 20 characters of one evaluation alphabet, one drawing
of each by one person to learn from and one by another person to classify: 20-way one-shot within an alphabet, 400
trials. As a dataset:

- ``meta_train``: the 964 characters of the 30 background alphabets, 20 drawings each.
- ``meta_validation``: the characters of the 10 evaluation alphabets without a run, 20 drawings each, the division of
  Koch, Zemel, Salakhutdinov (2015). The runs do not name their alphabets; these are found by looking each drawing up in
  ``images_evaluation.zip``, pixel by pixel.
- ``meta_test``: 400 classes ``run01/class01`` to ``run20/class20`` in the order of the runs. Row 0 is the drawing to
  learn from, row 1 the one to classify, paired by ``class_labels.txt``.

Ink and size are as in :mod:`distmeta.data.sources.omniglot`; :class:`distmeta.LakeRuns` makes the tasks.
"""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from distmeta.data.manifest import Manifest
from distmeta.data.sources.omniglot import (
    Character,
    drawings,
    index,
    open_archive,
    paper,
    read,
    require_size,
    scaled_ink,
    write_drawings,
)
from distmeta.data.writer import ClassImages, Progress
from distmeta.errors import DataError

ARCHIVE = "all_runs.zip"
URL = "https://github.com/brendenlake/omniglot/tree/master/python/one-shot-classification"
RUNS, WAYS = 20, 20
MEMBER = re.compile(r"(?:.*/)?(run\d\d)/(training/class|test/item)\d\d\.png")


def build_omniglot_runs(
    out: Path | str, *, source: Path | str, size: int = 28, progress: Progress | None = None
) -> Manifest:
    """Write Lake's runs, with the background alphabets to train on, as a dataset.

    Args:
        out: folder for the dataset.
        source: folder with ``all_runs.zip``, ``images_background.zip`` and ``images_evaluation.zip``.
        size: height and width of an image, in pixels.
        progress: called with (classes done, classes in total).

    Returns:
        The manifest. Images are ``[1, size, size]`` uint8, ink 255 on 0.

    Raises:
        DataError: an archive is absent or damaged, the labels do not pair up the drawings, or ``out`` cannot be used.
    """
    require_size(size)
    folder = Path(source)
    if not (folder / ARCHIVE).is_file():
        raise DataError(f"{folder / ARCHIVE} is absent. Fetch it from {URL} and put it beside images_background.zip.")
    with contextlib.ExitStack() as stack:
        runs = stack.enter_context(open_archive(folder / ARCHIVE, pattern=MEMBER, expected=2 * RUNS * WAYS))
        background, evaluation = (
            index(stack.enter_context(open_archive(folder / name)))
            for name in ("images_background.zip", "images_evaluation.zip")
        )
        pairs = _pairs(runs)
        taken = _alphabets(runs, pairs, evaluation)
        unseen = [c for _, c in sorted(evaluation.items()) if _alphabet(c) not in taken]

        def classes() -> Iterator[ClassImages]:
            for _, c in sorted(background.items()):
                yield ClassImages("meta_train", c.name, read(c, size))
            for c in unseen:
                yield ClassImages("meta_validation", c.name, read(c, size))
            for name, pair in pairs.items():
                x = np.stack([scaled_ink(paper(runs, member), size) for member in pair])
                yield ClassImages("meta_test", name, x[:, None])

        return write_drawings(
            out,
            classes(),
            name="omniglot-runs",
            provenance={"source": URL, "alphabets of the runs": sorted(taken), "size": size},
            progress=progress,
            total=len(background) + len(unseen) + len(pairs),
        )


def _pairs(runs: zipfile.ZipFile) -> dict[str, tuple[str, str]]:
    """Map ``run01/class01`` and so on, in order, to the member to learn from and the member to classify."""
    there = {match[0] for match in drawings(runs, MEMBER)}
    pairs: dict[str, tuple[str, str]] = {}
    for labels in sorted(name for name in runs.namelist() if re.fullmatch(r"(?:.*/)?run\d\d/class_labels\.txt", name)):
        # "run01/test/item01.png run01/training/class08.png", relative to the folder of the runs.
        top = labels.removesuffix("class_labels.txt")[: -len("run01/")]
        lines = [line.split() for line in runs.read(labels).decode("utf-8", "replace").splitlines() if line.strip()]
        named = {top + name for line in lines for name in line}
        if any(len(line) != 2 for line in lines) or len(lines) != WAYS or len(named) != 2 * WAYS or not named <= there:
            raise DataError(
                f"{runs.filename}: {labels} does not pair {WAYS} test drawings with {WAYS} training drawings of the "
                f"archive, each once. Fetch {ARCHIVE} again from {URL}."
            )
        for test, training in sorted(lines, key=lambda line: line[1]):
            pairs[training.replace("/training", "").removesuffix(".png")] = top + training, top + test
    if len(pairs) != RUNS * WAYS:
        raise DataError(
            f"{runs.filename} has labels for {len(pairs)} trials; expected {RUNS * WAYS} in {RUNS} runs. "
            f"Fetch {ARCHIVE} again from {URL}."
        )
    return pairs


def _alphabets(
    runs: zipfile.ZipFile, pairs: dict[str, tuple[str, str]], evaluation: dict[int, Character]
) -> frozenset[str]:
    """Find the alphabets of the runs by looking up their drawings; both of a pair must be of one character."""
    home = {paper(c.archive, member).tobytes(): c for c in evaluation.values() for member in c.members}
    found = []
    for name, pair in pairs.items():
        first, second = (home.get(paper(runs, member).tobytes()) for member in pair)
        if first is None or first is not second:
            raise DataError(
                f"{runs.filename}: the two drawings of {name} are not of one character of images_evaluation.zip. Fetch "
                f"both archives again, {ARCHIVE} from {URL}."
            )
        found.append(_alphabet(first))
    return frozenset(found)


def _alphabet(character: Character) -> str:
    return character.name.split("/")[0]
