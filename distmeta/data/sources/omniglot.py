"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015): 1,623 characters of 50 alphabets, each drawn by 20 people.

Images are stored as the papers use them, 28x28, but with bright ink: ink 255, paper 0, so that an empty image is zero.
The 105x105 originals are scaled down with the Lanczos filter. A class is ``Alphabet/characterNN``; image i of a class
is by drawer i + 1. Rotated copies are not stored; they are made when a task is drawn.

Two divisions of the classes:

- ``vinyals`` (Vinyals et al. 2016; Snell et al. 2017): by character id, 1,028 / 172 / 423 classes.
- ``background-evaluation`` (the official one): 964 meta_train classes and 659 meta_test classes of other alphabets, no
  meta_validation.

Do not mix the two: meta_train of ``vinyals`` contains characters of evaluation alphabets.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from distmeta.data.cache import cache_dir
from distmeta.data.manifest import Manifest
from distmeta.data.writer import ClassImages, Progress, write_dataset
from distmeta.errors import DataError
from distmeta.types import Split

SOURCE_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
ARCHIVES = {"images_background.zip": 19_280, "images_evaluation.zip": 13_180}
"""Name of each archive to its number of drawings."""

CLASSES = 1623
BACKGROUND = 964
DRAWERS = 20

VINYALS_TEST = range(1201, CLASSES + 1)
VINYALS_VALIDATION = (range(27, 68), range(132, 178), range(251, 273), range(466, 488), range(729, 770))
"""Character ids of meta_validation: five whole alphabets."""

DRAWING = re.compile(r"(?:.*/)?([^/]+)/(character\d+)/(\d{4})_(\d{2})\.png")
"""Name of an archive member: alphabet, character, id and drawer."""

TIMEOUT = 30.0

OmniglotSplit = Literal["vinyals", "background-evaluation"]


def build_omniglot(
    out: Path | str,
    *,
    source: Path | str | None = None,
    split: OmniglotSplit = "vinyals",
    size: int = 28,
    progress: Progress | None = None,
) -> Manifest:
    """Write Omniglot as a dataset.

    Args:
        out: folder for the dataset.
        source: folder with ``images_background.zip`` and ``images_evaluation.zip``; by default they are downloaded from
            the official repository into the cache. The next call continues an interrupted download.
        split: division of the classes, see the module's docstring.
        size: height and width of an image, in pixels.
        progress: called with (classes done, classes in total).

    Returns:
        The manifest. Images are ``[1, size, size]`` uint8, ink 255 on 0.

    Raises:
        DataError: an archive is absent, damaged or cannot be downloaded, or ``out`` cannot be used.
    """
    if split not in ("vinyals", "background-evaluation"):
        raise DataError(f"Omniglot has no split {split!r}; expected vinyals or background-evaluation.")
    require_size(size)
    folder = download() if source is None else Path(source)
    with contextlib.ExitStack() as stack:
        characters: dict[int, Character] = {}
        for archive in ARCHIVES:
            characters.update(index(stack.enter_context(open_archive(folder / archive))))
        if sorted(characters) != list(range(1, CLASSES + 1)):
            raise DataError(f"the archives in {folder} do not hold the characters 1 to {CLASSES}. Fetch them again.")
        return write_drawings(
            out,
            (ClassImages(split_of(i, split), c.name, read(c, size)) for i, c in sorted(characters.items())),
            name="omniglot",
            provenance={"source": "https://github.com/brendenlake/omniglot", "split": split, "size": size},
            progress=progress,
            total=CLASSES,
        )


def require_size(size: int) -> None:
    """Refuse a size that is no number of pixels."""
    if size < 1:
        raise DataError(f"size {size} is not an image size; expected a number of pixels, for example --size 28.")


def write_drawings(
    out: Path | str,
    classes: Iterable[ClassImages],
    *,
    name: str,
    provenance: Mapping[str, Any],
    progress: Progress | None,
    total: int,
) -> Manifest:
    """Write classes of Omniglot's drawings as a dataset, with the preprocessing, citation and licence that they share.

    Args:
        out: folder for the dataset.
        classes: the images, as :func:`read` and :func:`scaled_ink` make them.
        name: name of the dataset.
        provenance: origin, division and size of the images.
        progress: called with (classes done, ``total``).
        total: number of classes.
    """
    return write_dataset(
        out,
        classes,
        name=name,
        provenance={
            **provenance,
            "scaled": "Lanczos from 105x105, ink 255 on 0",
            "ink": True,
            "citation": "Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic "
            "program induction. Science 350 (2015)",
        },
        licence="MIT, (c) 2015 Brenden Lake",
        progress=progress,
        total=total,
    )


def split_of(character: int, split: OmniglotSplit) -> Split:
    """Find the split of a character.

    Args:
        character: id, 1 to 1623.
        split: division of the classes.

    Example:
        >>> split_of(27, "vinyals"), split_of(27, "background-evaluation")
        ('meta_validation', 'meta_train')
    """
    if split == "background-evaluation":
        return "meta_train" if character <= BACKGROUND else "meta_test"
    if character in VINYALS_TEST:
        return "meta_test"
    return "meta_validation" if any(character in ids for ids in VINYALS_VALIDATION) else "meta_train"


def download(url: str | None = None) -> Path:
    """Download the archives into the cache, continuing where an earlier call stopped.

    Args:
        url: address of the archives' folder; the official one by default.

    Returns:
        The folder that holds both archives, verified.

    Raises:
        DataError: the network fails (what has arrived is kept), or the download is not the archive.
    """
    url = SOURCE_URL if url is None else url
    folder = cache_dir() / "downloads" / "omniglot"
    for archive in ARCHIVES:
        target = folder / archive
        if target.is_file():
            continue
        part = target.with_name(f"{archive}.part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _fetch(f"{url}/{archive}", part)
        except (OSError, http.client.HTTPException) as error:
            raise DataError(
                f"cannot download {url}/{archive}: {error}. Try again to continue, or fetch "
                f"{' and '.join(ARCHIVES)} by hand from {SOURCE_URL} and give their folder with --from DIR."
            ) from None
        try:
            open_archive(part, archive).close()
        except DataError:
            # A file that is not the archive cannot be continued; the next call starts from the beginning.
            part.unlink()
            raise
        part.replace(target)
    return folder


class Character(NamedTuple):
    """A character: its name, and the archive and members of its drawings."""

    name: str
    archive: zipfile.ZipFile
    members: list[str]


def _fetch(url: str, part: Path) -> None:
    """Download ``url`` to ``part``, continuing it if it exists."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        # 416: no bytes are left to send, so the file is complete or too long; the check of the archive decides.
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return
        raise
    with response:
        # A server that ignores Range answers 200 and sends the whole file.
        continued = response.status == http.HTTPStatus.PARTIAL_CONTENT
        with part.open("ab" if continued else "wb") as file:
            shutil.copyfileobj(response, file)
        expected = response.headers["Content-Length"]
        got = part.stat().st_size - (have if continued else 0)
        if expected is not None and got != int(expected):
            raise OSError(f"the connection ended after {got} of {expected} bytes")


def open_archive(
    path: Path, archive: str | None = None, *, pattern: re.Pattern[str] = DRAWING, expected: int | None = None
) -> zipfile.ZipFile:
    """Open and check an archive: every member's CRC, and the number of PNGs.

    Args:
        path: path of the archive.
        archive: official name of the archive, if the file has another one.
        pattern: pattern of the members to count.
        expected: number of these members; from :data:`ARCHIVES` by default.

    Raises:
        DataError: the archive is absent, damaged or another one.
    """
    name = archive or path.name
    fix = f"Fetch {name} again from {SOURCE_URL}."
    if not path.is_file():
        siblings = ARCHIVES if name in ARCHIVES else (name,)
        raise DataError(f"{path} is absent; expected {' and '.join(siblings)} in that folder. {fix}")
    expected = ARCHIVES[name] if expected is None else expected
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(zipfile.ZipFile(path))
            damaged = opened.testzip()
        except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError) as error:
            raise DataError(f"{path} is not a whole zip archive: {error}. {fix}") from None
        pngs = len(drawings(opened, pattern))
        if damaged is not None or pngs != expected:
            seen = f"member {damaged} fails its CRC" if damaged else f"it holds {pngs} drawings, expected {expected}"
            raise DataError(f"{path} is damaged or another archive: {seen}. {fix}")
        # The archive is whole: return it open.
        stack.pop_all()
    return opened


def drawings(archive: zipfile.ZipFile, pattern: re.Pattern[str] = DRAWING) -> list[re.Match[str]]:
    """List the members that are drawings, in any folder, as matches of ``pattern``."""
    return [match for match in map(pattern.fullmatch, archive.namelist()) if match]


def index(archive: zipfile.ZipFile) -> dict[int, Character]:
    """Map each character id to its character, with the drawings in the order of the drawers."""
    characters: dict[int, Character] = {}
    for match in sorted(drawings(archive), key=lambda m: (int(m[3]), int(m[4]))):
        fresh = Character(f"{match[1]}/{match[2]}", archive, [])
        characters.setdefault(int(match[3]), fresh).members.append(match[0])
    return characters


def read(character: Character, size: int) -> npt.NDArray[np.uint8]:
    """Read the 20 drawings of a character, ``[20, 1, size, size]`` uint8, ink 255 on 0."""
    if len(character.members) != DRAWERS:
        raise DataError(
            f"{character.archive.filename}: {character.name} has {len(character.members)} drawings, expected "
            f"{DRAWERS}. Fetch the archive again from {SOURCE_URL}."
        )
    images = [scaled_ink(paper(character.archive, member), size) for member in character.members]
    return np.stack(images)[:, None]


def paper(archive: zipfile.ZipFile, member: str) -> npt.NDArray[np.uint8]:
    """Read a drawing as stored in the archive, ink 0 on paper 255: ``[105, 105]`` uint8."""
    try:
        return np.asarray(Image.open(io.BytesIO(archive.read(member))).convert("L"))
    except (OSError, SyntaxError) as error:
        raise DataError(f"{archive.filename}: {member} is not an image: {error}. Fetch it again.") from None


def scaled_ink(drawing: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Invert and scale a drawing: ``[size, size]`` uint8, ink 255 on 0."""
    return np.asarray(Image.fromarray(255 - drawing).resize((size, size), Image.Resampling.LANCZOS))
