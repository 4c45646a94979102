"""One picture, from wherever it is, as 8-bit grey or RGB pixels of a given size.

Building a dataset and asking a trained model about a new picture go through the same functions, so that both see the
same pixels.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from distmeta.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

MODES = {1: "L", 3: "RGB"}

MAX_PIXELS = 100_000_000
"""Width times height of a picture, at most: a small file can claim any size, and is refused before it is decoded."""


def open_picture(source: Path | str | bytes | Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture: 8 bits per channel, turned by its EXIF orientation, still with its own colours.

    Args:
        source: a path, the bytes of a file, or an opened picture.
        max_pixels: width times height, at most.

    Returns:
        A picture of 8 bits per channel; 16-bit grey is scaled to 8.

    Raises:
        DataError: it cannot be read, or is larger than allowed.

    Example:
        >>> from PIL import Image
        >>> open_picture(Image.new("I;16", (4, 3), 65535)).getpixel((0, 0))
        255
    """
    from PIL import Image, ImageOps

    name = "the picture" if isinstance(source, bytes | Image.Image) else str(source)
    try:
        with contextlib.ExitStack() as stack, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower, and is an error
            if isinstance(source, Image.Image):
                opened = source
            else:
                file = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
                opened = stack.enter_context(Image.open(file))
            if opened.width * opened.height > max_pixels:
                raise DataError(
                    f"{name} has {opened.width}x{opened.height} pixels; expected at most {max_pixels:,} in all. "
                    "Scale it down."
                )
            image = ImageOps.exif_transpose(opened)
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be read as an image: {error}. Replace or remove it.") from None
    return _eight_bits(image, name)


def colours(image: Image.Image) -> int:
    """1 for a grey picture, 3 for one with colours."""
    return 1 if image.mode in ("1", "L", "LA", "La") else 3


def fitted(image: Image.Image, channels: int, size: tuple[int, int] | None) -> npt.NDArray[np.uint8]:
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


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise DataError(
                f"{name} has values {values.min()} to {values.max()}; expected 16-bit grey, 0 to 65535. Convert it to "
                "8-bit PNG first."
            )
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode.startswith("F"):
        raise DataError(f"{name} has mode F, floating point without a known range. Convert it to 8-bit PNG first.")
    return image


def _flatten(image: Image.Image, channels: int) -> Image.Image:
    """Convert to grey or RGB, with transparent parts white; dropping alpha would show the colour below."""
    from PIL import Image

    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image.convert(MODES[channels])
