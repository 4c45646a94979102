"""Small pictures as ``data:`` addresses, for pages that carry all they show."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt

_SIDE = 96  # pixels: twice the size at which a page shows them, for dense screens
_PLAIN = 48  # a colour picture up to this side is smaller as PNG than as JPEG


def picture_address(image: npt.ArrayLike) -> str:
    """One picture, its values stretched to the full range; light ink on dark is drawn as dark on light.

    Args:
        image: ``[C, H, W]`` or ``[H, W]``; three channels are colours, of any other number the mean is drawn.

    Example:
        >>> picture_address(np.eye(4))[:22]
        'data:image/png;base64,'
    """
    from PIL import Image

    values = np.asarray(image, dtype=np.float64)
    values = values[None] if values.ndim == 2 else values
    if len(values) != 3:
        values = values.mean(0, keepdims=True)
    low, high = values.min(), values.max()
    values = (values - low) / (high - low) if high > low else np.zeros_like(values)
    colour = len(values) == 3
    # As the other figures do: handwriting is stored as light on dark and reads better as dark on light.
    pixels = np.rint(255 * (np.moveaxis(values, 0, -1) if colour else 1 - values[0])).astype(np.uint8)
    drawn = Image.fromarray(pixels)
    if max(drawn.size) > _SIDE:
        drawn.thumbnail((_SIDE, _SIDE))
    return _address(drawn, jpeg=colour and max(drawn.size) > _PLAIN)


def matrix_address(values: npt.ArrayLike) -> str:
    """A matrix as a picture of one pixel per cell, 0 white and 1 black; NaN is left clear.

    Args:
        values: ``[rows, columns]``, clipped to 0 to 1.
    """
    from PIL import Image

    cells = np.asarray(values, dtype=np.float64)
    seen = np.isfinite(cells)
    grey = np.rint(255 * (1 - np.clip(np.where(seen, cells, 0.0), 0, 1))).astype(np.uint8)
    return _address(Image.fromarray(np.stack([grey, np.where(seen, 255, 0).astype(np.uint8)], -1), "LA"))


def file_address(content: bytes) -> str:
    """A PNG file as an address."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _address(drawn: object, *, jpeg: bool = False) -> str:
    from PIL import Image

    assert isinstance(drawn, Image.Image)
    content = io.BytesIO()
    if jpeg:
        drawn.save(content, "JPEG", quality=85)
    else:
        drawn.save(content, "PNG", optimize=True)
    return f"data:image/{'jpeg' if jpeg else 'png'};base64,{base64.b64encode(content.getvalue()).decode()}"
