"""Glyphs, the built-in dataset: characters rendered from the fonts that matplotlib ships, without a download.

A class is a character, an instance is one font face of it (of 8 to 16: sans, serif, mono and STIX, upright, italic,
bold) under a random rotation, shear, stretch and shift. Splits follow Unicode blocks, so that meta-test has scripts
that are absent from meta-training:

=================  ===================================================================================================
split              blocks
=================  ===================================================================================================
meta_train         Latin (Basic, Latin-1, Extended-A to -D, Additional, IPA, Phonetic), Greek, Greek Extended
meta_validation    Armenian, Lao
meta_test          Cyrillic, Cyrillic Supplement, Cyrillic Extended-B, Georgian, Georgian Supplement
=================  ===================================================================================================

Characters that look alike (Latin A, Greek Alpha, Cyrillic A; but also O, o and 0, since glyphs are drawn at one size)
are one class, in the split of its first character in the order of this table.
"""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont, features
from PIL import __version__ as pillow_version

from distmeta.data.manifest import Manifest
from distmeta.data.writer import ClassImages, Progress, write_dataset
from distmeta.errors import DataError
from distmeta.seeding import rng
from distmeta.types import Split

BLOCKS: dict[Split, tuple[tuple[str, int, int], ...]] = {
    "meta_train": (
        ("Basic Latin", 0x0000, 0x007F),
        ("Latin-1 Supplement", 0x0080, 0x00FF),
        ("Latin Extended-A", 0x0100, 0x017F),
        ("Latin Extended-B", 0x0180, 0x024F),
        ("IPA Extensions", 0x0250, 0x02AF),
        ("Greek and Coptic", 0x0370, 0x03FF),
        ("Phonetic Extensions", 0x1D00, 0x1DBF),
        ("Latin Extended Additional", 0x1E00, 0x1EFF),
        ("Greek Extended", 0x1F00, 0x1FFF),
        ("Latin Extended-C", 0x2C60, 0x2C7F),
        ("Latin Extended-D", 0xA720, 0xA7FF),
    ),
    "meta_validation": (("Armenian", 0x0530, 0x058F), ("Lao", 0x0E80, 0x0EFF)),
    "meta_test": (
        ("Cyrillic", 0x0400, 0x04FF),
        ("Cyrillic Supplement", 0x0500, 0x052F),
        ("Georgian", 0x10A0, 0x10FF),
        ("Georgian Supplement", 0x2D00, 0x2D2F),
        ("Cyrillic Extended-B", 0xA640, 0xA69F),
    ),
}

FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
"""The text faces. Left out: LastResort, which claims every code point; Computer Modern and the STIX symbol faces, whose
code points are not Unicode; the Display cuts, which hold a handful of capitals."""

REFERENCE_FACES = ("DejaVuSans", "DejaVuSerif")
"""Look-alikes are found by comparing these faces; every class has at least the first."""

MIN_FACES = 8
MIN_INK = 1 / 3  # as a fraction of the em; smaller marks (the Greek prosgegrammeni) blur when scaled to full size
LETTERS_AND_DIGITS = {"Lu", "Ll", "Lt", "Lo", "Nd"}

# Two characters are one class if the cosine between their blurred pixels is above this in all reference faces that
# both have. At 0.925 twins between scripts are merged (Latin U and Armenian Seh), and letters that differ in a clear
# accent remain two classes.
LOOK_ALIKE = 0.925

# Limits of the random affine map, so strong that nearest neighbours on pixels are right about half the time (5-way
# 1-shot).
ROTATION = math.radians(15)
SHEAR = 0.2
SCALE = (0.8, 1.1)
SHIFT = 0.06

FONT_PIXELS = 96
OVERSAMPLING = 4
FILL = 0.75


def build_glyphs(out: Path | str, *, size: int = 28, instances: int = 20, progress: Progress | None = None) -> Manifest:
    """Render the glyphs dataset.

    Args:
        out: folder for the dataset.
        size: height and width of an image, in pixels.
        instances: images per class.
        progress: called with (classes done, classes in total).

    Returns:
        The manifest. Images are ``[1, size, size]`` uint8, ink 255 on 0, anti-aliased. The same fonts and the same
        version of FreeType give the same fingerprint.

    Raises:
        DataError: a font of matplotlib is absent, a number is too small, or ``out`` cannot be used.
    """
    if size < 8 or instances < 1:
        raise DataError(f"glyphs of {size} pixels, {instances} per class; expected at least 8 pixels and 1 per class.")
    fonts = _load_fonts()
    kept = _distinct(_candidates(fonts), fonts)
    return write_dataset(
        out,
        (ClassImages(c.split, _class_name(c.character), _render_class(c, fonts, size, instances)) for c in kept),
        name="glyphs",
        provenance={
            "source": "characters rendered from the DejaVu and STIX fonts that matplotlib ships",
            "faces": list(FACES),
            "size": size,
            "instances": instances,
            "ink": True,
            "fill": FILL,
            "blocks": {split: [name for name, _, _ in blocks] for split, blocks in BLOCKS.items()},
            "pillow": pillow_version,
            "freetype": features.version("freetype2"),
        },
        licence="rendered from DejaVu (Bitstream Vera licence) and STIX (STIX Font licence) fonts",
        progress=progress,
        total=len(kept),
    )


class _Face(NamedTuple):
    font: ImageFont.FreeTypeFont
    characters: frozenset[int]


class _Candidate(NamedTuple):
    split: Split
    character: str
    faces: tuple[str, ...]


def _load_fonts() -> dict[str, _Face]:
    # Imported here, since importing matplotlib takes longer than opening a dataset.
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = {}
    for face in FACES:
        path = folder / f"{face}.ttf"
        if not path.is_file():
            raise DataError(f"matplotlib's font {path} is absent. Reinstall matplotlib: pip install -I matplotlib")
        # Glyph 0 is .notdef, the empty box of characters that the face does not have.
        have = frozenset(code for code, glyph in FT2Font(str(path)).get_charmap().items() if glyph)
        # Basic layout: pixels must not depend on whether libraqm is installed.
        fonts[face] = _Face(ImageFont.truetype(path, FONT_PIXELS, layout_engine=ImageFont.Layout.BASIC), have)
    return fonts


def _candidates(fonts: dict[str, _Face]) -> list[_Candidate]:
    """List letters and digits with enough faces, in the order of ``BLOCKS``."""
    found = []
    for split, blocks in BLOCKS.items():
        for _, first, last in blocks:
            for code in range(first, last + 1):
                faces = tuple(face for face in FACES if code in fonts[face].characters)
                if (
                    unicodedata.category(chr(code)) in LETTERS_AND_DIGITS
                    and len(faces) >= MIN_FACES
                    and REFERENCE_FACES[0] in faces
                    and _is_large(_ink(fonts[REFERENCE_FACES[0]].font, chr(code)))
                ):
                    found.append(_Candidate(split, chr(code), faces))
    return found


def _distinct(candidates: list[_Candidate], fonts: dict[str, _Face]) -> list[_Candidate]:
    """Keep the first of each group of look-alikes."""
    alike = np.ones((len(candidates), len(candidates)), bool)
    for face in REFERENCE_FACES:
        have = np.array([face in c.faces for c in candidates])
        pixels = np.array([_blurred(fonts[face].font, c.character) for c in candidates if face in c.faces])
        alike[np.ix_(have, have)] &= pixels @ pixels.T > LOOK_ALIKE
    kept: list[int] = []
    for i in range(len(candidates)):
        if not alike[i, kept].any():
            kept.append(i)
    return [candidates[i] for i in kept]


def _blurred(font: ImageFont.FreeTypeFont, character: str) -> npt.NDArray[np.float32]:
    """Render the glyph upright and slightly blurred, as a unit vector ``[28 * 28]``."""
    image = _draw(font, character, 28, np.eye(2), (0.0, 0.0)).filter(ImageFilter.GaussianBlur(0.7))
    pixels = np.asarray(image, np.float32).ravel()
    return pixels / np.float32(np.linalg.norm(pixels))


def _render_class(candidate: _Candidate, fonts: dict[str, _Face], size: int, instances: int) -> npt.NDArray[np.uint8]:
    """Render ``[instances, 1, size, size]``; every face is used once, in random order, before any is used again."""
    name = _class_name(candidate.character)
    turns = -(-instances // len(candidate.faces))
    order = [face for turn in range(turns) for face in _shuffled(candidate.faces, name, turn)]
    return np.stack([_render(fonts[order[i]].font, candidate.character, name, i, size) for i in range(instances)])


def _shuffled(faces: tuple[str, ...], name: str, turn: int) -> list[str]:
    return [faces[i] for i in rng(0, "glyphs", name, "faces", turn).permutation(len(faces))]


def _render(font: ImageFont.FreeTypeFont, character: str, name: str, i: int, size: int) -> npt.NDArray[np.uint8]:
    r = rng(0, "glyphs", name, i)
    angle, shear = r.uniform(-ROTATION, ROTATION), r.uniform(-SHEAR, SHEAR)
    stretch = np.diag(r.uniform(*SCALE, size=2))
    shift = tuple(r.uniform(-SHIFT, SHIFT, size=2))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    image = _draw(font, character, size, turn @ np.array([[1, shear], [0, 1]]) @ stretch, shift)
    return np.asarray(image, np.uint8)[None]


def _draw(
    font: ImageFont.FreeTypeFont,
    character: str,
    size: int,
    linear: npt.NDArray[np.float64],
    shift: tuple[float, ...],
) -> Image.Image:
    """Draw the glyph centred, its longer side scaled to ``FILL`` of the image, then map it by ``linear`` and shift."""
    ink = _ink(font, character)
    assert ink is not None, "candidates have ink"
    # One resampling from the large glyph to an oversampled canvas, then exact box averages: sharp and anti-aliased.
    canvas = size * OVERSAMPLING
    back = np.linalg.inv(linear * (FILL * canvas / max(ink.size)))
    centre = np.array([(0.5 + s) * canvas for s in shift])
    offset = np.array(ink.size) / 2 - back @ centre
    coefficients = (*back[0], offset[0], *back[1], offset[1])
    mapped = ink.transform((canvas, canvas), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return mapped.reduce(OVERSAMPLING)


def _ink(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """Draw the large glyph, cropped to its ink with a border of one pixel; None if it is blank."""
    left, top, right, bottom = font.getbbox(character)
    width, height = math.ceil(right - left), math.ceil(bottom - top)
    if width <= 0 or height <= 0:
        return None
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).text((-left, -top), character, fill=255, font=font)
    box = image.getbbox()
    # Bilinear mapping fades at the border of its source; without a margin straight edges would be half as bright.
    return None if box is None else image.crop((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1))


def _is_large(ink: Image.Image | None) -> bool:
    return ink is not None and max(ink.size) >= MIN_INK * FONT_PIXELS


def _class_name(character: str) -> str:
    return f"U+{ord(character):04X} {unicodedata.name(character)}"
