"""Arrays and tensors that people give as pictures: which axis is what, and what range the numbers have.

Ambiguous arrays are refused: a wrong guess is a wrong prediction that nobody notices.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from distmeta.errors import DataError

Numbers: TypeAlias = npt.NDArray[Any]

_BEYOND = 1e-4  # by how much floats may exceed 0..1, as after interpolation; they are clipped


def is_picture(item: Any) -> bool:
    """Return whether ``item`` is a path, the bytes of a file, or a PIL image."""
    from PIL import Image

    return isinstance(item, str | bytes | os.PathLike | Image.Image)


def as_array(given: Any) -> Numbers | None:
    """Take an array, a tensor of any device, or what converts itself, as an array; ``None`` for anything else.

    Raises:
        DataError: a tensor that numpy cannot hold, such as a sparse one.
    """
    if hasattr(given, "detach") and hasattr(given, "cpu"):  # a tensor, without importing torch
        tensor = given.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":  # numpy has none
            tensor = tensor.float()
        try:
            return np.asarray(tensor.numpy())
        except (TypeError, RuntimeError) as error:
            raise DataError(f"A tensor of {tensor.dtype} is no array: {error}. Give a dense tensor.") from None
    if hasattr(given, "__array__"):  # also those of other libraries, tables included
        return np.asarray(given)
    return None


def as_rows(given: Sequence[Any]) -> Numbers | None:
    """Take lists of numbers as one array; ``None`` if they hold anything else.

    Example:
        >>> as_rows([[1, 2], [3, 4]]).shape
        (2, 2)
    """
    if not all(isinstance(row, list | tuple) for row in given) or not given:
        return None
    try:
        array = np.asarray(given)
    except ValueError:
        return None
    return array if array.dtype.kind in "buif" else None


def check_finite(x: Numbers, name: int | str) -> None:
    """Refuse NaN and infinite numbers.

    Args:
        x: ``[B, ...]`` floats.
        name: of the one row of ``x``, or the place of its first row among the inputs.

    Raises:
        DataError: a row is not finite; it is named.
    """
    bad = ~np.isfinite(x)
    if bad.any():
        if isinstance(name, int):
            name = f"Input {name + int(np.flatnonzero(bad.reshape(len(x), -1).any(1))[0])}"
        raise DataError(f"{name} has NaN or infinite numbers; expected finite ones. Repair or leave it out.")


def in_range(x: Numbers, what: str, *, plain: bool = False) -> Numbers:
    """Check that integers are 0..255 or floats 0..1.

    Args:
        x: integers, floats or bools.
        what: begins the error, such as ``"Input 3 is"``.
        plain: whether these are no pictures, so that integers of 0 and 1 are what they seem.

    Returns:
        Floats, or uint8 for integers and bools (0 and 255).

    Raises:
        DataError: they are not, or could mean two things.

    Example:
        >>> in_range(np.array([True, False]), "The inputs are")
        array([255,   0], dtype=uint8)
    """
    if x.dtype.kind == "b":
        return x.astype(np.uint8) * np.uint8(255)
    if not x.size:
        return x if x.dtype.kind == "f" else x.astype(np.uint8)
    low, high = float(x.min()), float(x.max())
    if x.dtype.kind == "f":
        if low < -_BEYOND or high > 1 + _BEYOND:
            fix = "Undo the normalisation" if low < 0 else "Divide by 255, or give uint8"
            raise DataError(f"{what} {x.dtype} from {low:g} to {high:g}; expected floats from 0 to 1. {fix}.")
        return np.clip(x, 0, 1)
    if low < 0 or high > 255:
        raise DataError(
            f"{what} {x.dtype} from {low:g} to {high:g}; expected integers from 0 to 255. Scale them to 0 to 255."
        )
    if high == 1 and not plain:
        raise DataError(
            f"{what} {x.dtype} of 0 and 1, which is black and almost black, or black and white. Give bools for black "
            "and white, floats from 0 to 1, or integers from 0 to 255."
        )
    return x.astype(np.uint8)


def channels_first(x: Numbers, shape: tuple[int, ...], name: str | None) -> Numbers:
    """Take pictures ``[B, H, W]``, ``[B, C, H, W]`` or ``[B, H, W, C]`` as ``[B, C, H, W]``.

    Args:
        x: pictures with a batch axis.
        shape: ``(C, H, W)`` of the dataset, which decides where two readings are possible; empty if it is unknown.
        name: of the picture, if ``x`` is one picture; ``None`` for a batch that was given as one array.

    Raises:
        DataError: no reading, or two.

    Example:
        >>> channels_first(np.zeros((2, 30, 40, 3)), (3, 84, 84), None).shape
        (2, 3, 30, 40)
    """
    counts = (1, 3, 4)  # grey, RGB, RGBA
    what = f"The inputs have shape {list(x.shape)}" if name is None else f"{name} has shape {list(x.shape[1:])}"
    if 0 in x.shape[1:]:
        raise DataError(f"{what}: no pixels. Give pictures of at least one pixel.")
    if x.ndim == 3:
        one_picture = x.shape[2] in (3, 4) or (shape[:1] == (3,) and x.shape[0] == 3)
        if name is None and one_picture and (1, *x.shape[1:]) != shape:
            raise DataError(
                f"{what}, which is one picture in colours, or {x.shape[0]} grey ones. For one picture, give x[None]; "
                "for grey ones, x[:, None]."
            )
        return x[:, None]
    if x.ndim == 4:
        first, last = x.shape[1] in counts, x.shape[3] in counts
        if x.shape[1:] == shape or (first and not last):
            return x
        if last and not first:
            return x.transpose(0, 3, 1, 2)
        if first and last:
            fix = f"pictures of {list(shape)}, or PIL images" if shape else "PIL images"
            raise DataError(f"{what}, whose channels may be the first or the last of three axes. Give {fix}.")
    axes = "[B, H, W], [B, C, H, W] or [B, H, W, C]" if name is None else "[H, W], [C, H, W] or [H, W, C]"
    raise DataError(f"{what}; expected pictures {axes} with 1 or 3 channels. For one picture, give x[None].")
