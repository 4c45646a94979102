"""Pictures as numbers of JSON: bytes or fractions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from distmeta.errors import DataError


def pixels_of(place: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Numbers of one picture, as uint8 (0..255) or as fractions (0..1) of the type they have.

    The type of a number does not tell which: languages such as JavaScript write 1.0 as 1. Where no number is above 1,
    they are fractions.

    Args:
        place: of the picture in the request, for the message.
        values: at least one number.

    Raises:
        DataError: they are neither.

    Example:
        >>> pixels_of("query_x[0]", np.array([0, 255])).dtype, pixels_of("query_x[0]", np.array([0, 0.5])).dtype
        (dtype('uint8'), dtype('float64'))
    """
    low, high = float(values.min()), float(values.max())
    if 0 <= low <= high <= 1:
        return values
    if low < 0 or high > 255 or not bool((values == np.rint(values)).all()):
        raise DataError(
            f"{place} has numbers from {low:g} to {high:g}; expected whole numbers from 0 to 255, or numbers from 0 to "
            "1. Undo the normalisation."
        )
    return values.astype(np.uint8)
