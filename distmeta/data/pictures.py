"""One picture, from wherever it is, as 8-bit grey or RGB pixels of a given size.

Building a dataset and asking a trained model about a new picture go through the same functions, so that both see the
same pixels. Imports neither torch nor pyarrow: processes that do nothing but read pictures start in a tenth of a
second.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from distmeta.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""``[C, H, W]``, or ``[H, W]`` grey."""

MODES = {1: "L", 3: "RGB"}

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF")
"""Formats that are read, as Pillow names them. It has more, some of which start other programs (EPS)."""

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pbm", ".pgm", ".pnm", ".ppm"}
)
"""Suffixes of files that are pictures, in lower case."""

MAX_PIXELS = 89_000_000
"""Width times height of a picture, at most: a small file can claim any size, and is refused before it is decoded. Just
below the size at which Pillow itself warns."""

LIGHT, DARK = 170, 85
"""Greys of a light and of a dark background; one between is neither."""

_GREY = ("1", "L", "LA", "La")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")

# What Pillow's decoders raise on damaged files, found by flipping bytes in files of every format.
_UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(MemoryError, RuntimeError, struct.error, zlib.error, Warning),
)


def open_picture(source: Path | str | bytes | Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture: 8 bits per channel, turned by its EXIF orientation, still with its own colours.

    Of an animation or a file of several pages, the first picture is taken.

    Args:
        source: a path, the bytes of a file, or an opened picture.
        max_pixels: width times height, at most.

    Returns:
        A picture of 8 bits per channel; 16-bit grey is scaled to 8.

    Raises:
        DataError: it cannot be read, is larger than allowed, or its numbers have no known range.

    Example:
        >>> from PIL import Image
        >>> open_picture(Image.new("I;16", (4, 3), 65535)).getpixel((0, 0))
        255
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = "the picture" if isinstance(source, bytes | Image.Image) else os.fspath(source)
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(source, Image.Image):
                opened = source
            else:
                file = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
                opened = stack.enter_context(Image.open(file, formats=_formats()))
            if opened.width * opened.height > max_pixels:
                raise DataError(
                    f"{name} has {opened.width}x{opened.height} pixels; expected at most {max_pixels:,} in all. "
                    "Scale it down."
                )
            opened.load()  # here, so that the format is still known
            return _eight_bits(opened, ImageOps.exif_transpose(opened), name)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{name} claims more than {max_pixels:,} pixels, the most allowed. Scale it down.") from None
    except UnidentifiedImageError:
        raise DataError(
            f"{name} cannot be read as an image: it is no PNG, JPEG, WebP, BMP, TIFF, GIF or PPM. Convert, replace or "
            "remove it."
        ) from None
    except FileNotFoundError:
        raise DataError(f"{name} does not exist. Correct the path; the current folder is {os.getcwd()}.") from None
    except _UNREADABLE as error:
        raise DataError(
            f"{name} cannot be read as an image: {error or type(error).__name__}. Replace or remove it."
        ) from None


def colours(image: Image.Image) -> int:
    """1 for a grey picture, 3 for one with colours."""
    return 1 if image.mode in _GREY else 3


def fitted(image: Image.Image, channels: int, size: tuple[int, int] | None) -> Pixels:
    """Convert to grey or RGB, scale and crop; transparent parts become white.

    Args:
        image: 8 bits per channel.
        channels: 1 or 3.
        size: height and width; the picture is scaled until it covers them (Lanczos) and cropped around its centre.
            ``None`` leaves the size.

    Returns:
        ``[channels, H, W]`` uint8.

    Example:
        >>> from PIL import Image
        >>> fitted(Image.new("RGB", (40, 30), "red"), 1, (10, 10)).shape
        (1, 10, 10)
    """
    from PIL import Image, ImageOps

    # Palettes and bits cannot be interpolated: convert before the resize.
    flat = _flatten(image, channels)
    if size is not None and flat.size != (size[1], size[0]):
        flat = ImageOps.fit(flat, (size[1], size[0]), Image.Resampling.LANCZOS)
    pixels = np.asarray(flat, np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def drawn(
    image: Image.Image, channels: int, size: tuple[int, int] | None, name: str, *, fill: float | None = None
) -> Pixels:
    """Convert a drawing to bright ink on a background of 0; the whole of it is kept, padded to shape.

    Args:
        image: 8 bits per channel, of ink on a plain background, either way round, or on a transparent one.
        channels: 1 or 3 (equal) channels of the result.
        size: height and width, scaled with Lanczos. ``None`` leaves the size.
        name: of the picture, for errors.
        fill: put the ink at the centre, its longer side this fraction of ``size``, wherever and however large it was
            drawn. A picture that has ``size`` is left as it is.

    Returns:
        ``[channels, H, W]`` uint8.

    Raises:
        DataError: the background is neither light nor dark.

    Example:
        >>> from PIL import Image
        >>> drawn(Image.new("RGB", (40, 30), "white"), 1, (10, 10), "paper").max()
        np.uint8(0)
    """
    grey = fitted(image, 1, None)[0]
    if _has_alpha(image):
        on_black = np.asarray(_flatten(image, 1, "black"), np.uint8)
        if np.ptp(on_black) > np.ptp(grey):  # light ink on nothing, which is invisible on white
            grey = on_black
    paper = background(grey, name)
    ink = _inverted(grey, paper)
    if size is not None and fill is not None and ink.shape != size:
        ink = _framed(ink, size, fill)
    elif size is not None:
        ink = _scaled_whole(ink, size, round(paper) if paper < DARK else 0)
    return np.repeat(ink[None], channels, 0)


def background(grey: npt.NDArray[Any], name: str) -> float:
    """Grey of the background of ``[H, W]`` greys 0..255: the median along the border.

    Raises:
        DataError: it is neither light nor dark.
    """
    border = np.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])
    found = float(np.median(border))
    if DARK <= found < LIGHT:
        raise DataError(
            f"{name} has a background of {found:.0f}, neither dark (below {DARK}) nor light ({LIGHT} to 255; median "
            "along its border); expected ink on a plain background. Crop it, or raise its contrast."
        )
    return found


def bright_ink(grey: Pixels, name: str) -> Pixels:
    """Invert ``[H, W]`` greys if their background is light, so that paper becomes 0 and black ink 255.

    Paper that is a little grey becomes 0 too; greys on a dark background are returned as they are.

    Raises:
        DataError: the background is neither light nor dark.

    Example:
        >>> paper = np.full((5, 5), 240, np.uint8)
        >>> paper[2, 2] = 0
        >>> bright_ink(paper, "paper")[2].tolist()
        [0, 0, 255, 0, 0]
    """
    return _inverted(grey, background(grey, name))


def _inverted(grey: Pixels, paper: float) -> Pixels:
    if paper < DARK:
        return grey
    if paper == 255:
        return 255 - grey
    return np.rint(np.clip(paper - grey.astype(np.float64), 0, None) * (255 / paper)).astype(np.uint8)


def picture_of(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Make a picture of ``[C, H, W]`` uint8 of 1 (grey), 3 (RGB) or 4 (RGBA) channels."""
    from PIL import Image

    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


@dataclass(frozen=True)
class Recipe:
    """The conversion that all pictures of a dataset go through.

    Args:
        size: height and width; ``None`` leaves each picture its own.
        channels: 1 or 3; ``None`` takes each picture's own (1 with ``ink``).
        ink: whether pictures are drawings, which become bright ink on 0 (:func:`drawn`); else photos (:func:`fitted`).
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    ink: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise DataError(f"size {self.size[0]} is not an image size; expected a number of pixels, such as 84.")
        if self.channels not in (None, 1, 3):
            raise DataError(f"channels {self.channels} is not a number of channels; expected 1 (grey) or 3 (RGB).")

    def make(self, source: Path | str | bytes | Image.Image, name: str) -> Pixels:
        """Read and convert a picture.

        Args:
            source: as for :func:`open_picture`.
            name: of the picture, for errors.

        Returns:
            ``[C, H, W]`` uint8.

        Raises:
            DataError: it cannot be read or converted.
        """
        image = open_picture(source)
        if self.ink:
            return drawn(image, self.channels or 1, self.size, name)
        return fitted(image, self.channels or colours(image), self.size)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow was built with."""
    from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401  # they register themselves

    Image.preinit()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _eight_bits(opened: Image.Image, image: Image.Image, name: str) -> Image.Image:
    """``image``, which is ``opened`` upright, with 8 bits per channel."""
    from PIL import Image

    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and opened.format in ("PNG", "PPM")):  # older Pillow: 16-bit PNG as I
        values = np.asarray(image).astype(np.int64)
        eight = ((values + 128) // 257).astype(np.uint8)
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            eight[values == clear] = 255
        return Image.fromarray(eight)
    if mode in (*_GREY, *_COLOUR):
        return image
    fix = "Convert it to 8-bit PNG first."
    if mode == "I":
        raise DataError(f"{name} has mode I, 32-bit integers without a known range; expected 8 or 16 bits. {fix}")
    if mode.startswith("F"):
        raise DataError(f"{name} has mode F, floating point without a known range. {fix}")
    raise DataError(f"{name} has mode {mode}; expected grey, RGB, CMYK or a palette. {fix}")


def _has_alpha(image: Image.Image) -> bool:
    return "A" in image.mode or "a" in image.mode or "transparency" in image.info


def _flatten(image: Image.Image, channels: int, below: str = "white") -> Image.Image:
    """Convert to grey or RGB, with transparent parts white; dropping alpha would show the colour below."""
    from PIL import Image

    if _has_alpha(image):
        if image.mode == "La":  # Pillow converts it to nothing but LA
            image = image.convert("LA")
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, below), over)
    return image.convert(MODES[channels])


def _scaled_whole(ink: Pixels, size: tuple[int, int], fill: int) -> Pixels:
    """Scale ``[H, W]`` until it fits into ``size`` and add background on two sides."""
    from PIL import Image

    factor = min(size[0] / ink.shape[0], size[1] / ink.shape[1])
    height, width = (max(1, min(most, round(side * factor))) for side, most in zip(ink.shape, size, strict=True))
    if (height, width) != ink.shape:
        ink = np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.LANCZOS), np.uint8)
    if (height, width) == size:
        return ink
    # Padded last: a long thin picture would become a huge square.
    above, left = (size[0] - height) // 2, (size[1] - width) // 2
    return np.pad(ink, ((above, size[0] - height - above), (left, size[1] - width - left)), constant_values=fill)


def _framed(ink: Pixels, size: tuple[int, int], fill: float) -> Pixels:
    """Cut the ink out of ``[H, W]`` and put it at the centre of ``size``, its longer side scaled to ``fill`` of it."""
    from PIL import Image

    inked = ink > max(32, int(ink.max()) // 4)  # paper has a grain
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    framed = np.zeros(size, np.uint8)
    if not len(rows):
        return framed
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    factor = fill * min(size[0] / box.shape[0], size[1] / box.shape[1])
    height, width = (max(1, min(most, round(side * factor))) for side, most in zip(box.shape, size, strict=True))
    scaled = np.asarray(Image.fromarray(box).resize((width, height), Image.Resampling.LANCZOS), np.uint8)
    above, left = (size[0] - height) // 2, (size[1] - width) // 2
    framed[above : above + height, left : left + width] = scaled
    return framed
