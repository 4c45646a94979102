"""How the inputs of a dataset were made, so that new pictures become inputs in the same way.

A dataset of pictures has one size, a number of channels, and one way round: ink datasets (Omniglot, glyphs, folders
built with ``ink``) have bright ink on a background of 0. A trained run keeps this and prepares what it is given: files,
pictures, arrays of bytes or of floats. What cannot be converted, or could mean two things, is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from distmeta.data.manifest import Manifest
from distmeta.data.pictures import DARK, MAX_PIXELS, background, bright_ink, drawn, fitted, open_picture, picture_of
from distmeta.data.pixel_arrays import Numbers, as_array, as_rows, channels_first, check_finite, in_range, is_picture
from distmeta.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Floats = npt.NDArray[np.float32]

_GLYPHS = "characters rendered from"
_INK_SOURCES = (_GLYPHS, "https://github.com/brendenlake/omniglot")
"""How the sources begin whose datasets are of ink; those of earlier versions do not record it."""


@dataclass(frozen=True)
class Preprocessing:
    """The conversion of a picture, or of a row of numbers, into an input of a trained model.

    Args:
        input_shape: shape of one input: ``(C, H, W)`` for pictures.
        dtype: of the dataset's numbers: ``"uint8"`` (networks see 0..1), or ``"float32"`` (taken as they are).
        ink: whether inputs are bright ink on a background of 0. A picture on a light background is then inverted.
        fill: the longer side of the ink as a fraction of the input, where the dataset was made so; the ink of a new
            drawing is then cut out, scaled and centred. ``None`` keeps the whole drawing as it is.

    Example:
        Black on white becomes white on black, 28 by 28 and grey:

        >>> from PIL import Image
        >>> made = Preprocessing((1, 28, 28), "uint8", ink=True)
        >>> made.inputs([Image.new("RGB", (200, 150), "white")]).shape
        (1, 1, 28, 28)
        >>> float(made.inputs([Image.new("RGB", (200, 150), "white")]).max())
        0.0
    """

    input_shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"] = "float32"
    ink: bool = False
    fill: float | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> Preprocessing:
        """That of a dataset; datasets of earlier versions tell by their source."""
        source = str(manifest.provenance.get("source", ""))
        ink = manifest.provenance.get("ink", source.startswith(_INK_SOURCES))
        fill = manifest.provenance.get("fill", 0.75 if source.startswith(_GLYPHS) else None)
        # Omniglot of earlier versions: a sentence for ink.
        return cls(manifest.input_shape, manifest.dtype, ink=bool(ink), fill=fill)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: the values are none.
        """
        dtype, shape, ink, fill = values["dtype"], values["input_shape"], values["ink"], values.get("fill")
        if dtype not in ("uint8", "float32"):
            raise ValueError(f"dtype {dtype!r} is neither uint8 nor float32")
        if not isinstance(ink, bool):
            raise TypeError(f"ink is {ink!r}, neither true nor false")
        if not isinstance(shape, list | tuple) or not shape or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"input_shape {shape!r} is no list of whole numbers above 0")
        if fill is not None and not (type(fill) is float and 0 < fill <= 1):
            raise ValueError(f"fill {fill!r} is no number from 0 to 1")
        return cls(tuple(shape), dtype, ink, fill)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "input_shape": list(self.input_shape)}

    @property
    def pictures(self) -> bool:
        """Whether inputs are pictures: 1 or 3 channels, height, width."""
        return len(self.input_shape) == 3 and self.input_shape[0] in (1, 3)

    def columns(self, given: Any) -> int | None:
        """How many numbers each of the given rows has; ``None`` where inputs are no rows, or these are none.

        Example:
            >>> Preprocessing((3,)).columns([[1, 2], [3, 4]])
            2
        """
        if len(self.input_shape) != 1:
            return None
        array = as_array(given)
        if array is None and isinstance(given, list | tuple):
            array = as_rows(given)
            if array is None:  # rows that are arrays or tensors
                rows = [as_array(one) for one in given]
                lengths = {row.shape for row in rows if row is not None and row.ndim == 1}
                return lengths.pop()[0] if len(lengths) == 1 and all(row is not None for row in rows) else None
        return int(array.shape[1]) if array is not None and array.ndim == 2 else None

    def inputs(self, given: Any, *, max_pixels: int = MAX_PIXELS) -> Floats:
        """Prepare inputs: decode, turn, scale, crop, convert colours, invert.

        Each input is prepared by itself: the result does not depend on the others of the batch.

        Args:
            given: a sequence of pictures (paths, bytes of files, PIL images, arrays), or one array or tensor with a
                leading batch axis: ``[B, H, W]``, ``[B, C, H, W]``, ``[B, H, W, C]``, of integers 0..255, floats 0..1
                or bools; or ``[B, *input_shape]`` numbers where inputs are no pictures. A single path or PIL image is a
                batch of one.
            max_pixels: width times height of a picture, at most.

        Returns:
            ``[B, *input_shape]`` float32, as the network was trained on them.

        Raises:
            DataError: an input cannot be converted; the message has its place and the fix.
        """
        if is_picture(given):
            given = [given]
        array = as_array(given)
        if array is not None and array.dtype.kind in "OUS" and array.ndim == 1:
            given, array = array.tolist(), None
        if array is None and not isinstance(given, Sequence):
            raise DataError(
                f"The inputs are a {type(given).__name__}; expected a list of pictures (paths, PIL images, arrays), or "
                "one array [B, ...]."
            )
        if array is None and not self.pictures:
            array = as_rows(given)
        if array is not None:
            return self._batch(array, max_pixels, None)
        found = [self._one(item, index, max_pixels) for index, item in enumerate(given)]
        return np.stack(found) if found else np.zeros((0, *self.input_shape), np.float32)

    def _one(self, item: Any, index: int, max_pixels: int) -> Floats:
        if is_picture(item):
            self._need_pictures(index)
            if isinstance(item, str | os.PathLike):  # its name is enough for people to find it
                return self._picture(open_picture(Path(item), max_pixels=max_pixels), os.fspath(item))
            try:
                return self._picture(open_picture(item, max_pixels=max_pixels), f"Input {index}")
            except DataError as error:
                raise _at(index, error) from None
        array = as_array(item)
        if array is None:
            raise DataError(
                f"Input {index} is a {type(item).__name__}; expected a path, a PIL image, an array or a tensor."
            )
        one: Floats = self._batch(array[None], max_pixels, index)[0]
        return one

    def _need_pictures(self, index: int) -> None:
        axes = ", ".join(map(str, self.input_shape))
        if not self.pictures:
            raise DataError(
                f"Input {index} is a picture; the model takes numbers of shape {list(self.input_shape)}. Give an "
                f"array [B, {axes}]."
            )
        if self.dtype == "float32":
            raise DataError(
                f"Input {index} is a picture; the model was trained on floats of its dataset's own scale. Give arrays "
                f"[B, {axes}], prepared as that dataset was."
            )

    def _batch(self, x: Numbers, max_pixels: int, index: int | None) -> Floats:
        """Prepare an array with a leading batch axis; ``index``: its place, if it is one item of a sequence."""
        what = "The inputs are" if index is None else f"Input {index} is"
        if x.dtype.kind not in "buif":
            raise DataError(f"{what} {x.dtype}; expected integers 0 to 255, floats or bools.")
        if x.ndim == 0:
            raise DataError(f"{what} one number; expected [B, {', '.join(map(str, self.input_shape))}].")
        if x.dtype.kind == "f":
            check_finite(x, index or 0)
        if not self.pictures or self.dtype == "float32":
            return self._numbers(x, what, index or 0)
        x = channels_first(x, self.input_shape, None if index is None else f"Input {index}")
        if x.shape[2] * x.shape[3] > max_pixels:
            raise DataError(f"{what} {x.shape[3]}x{x.shape[2]} pixels; expected at most {max_pixels:,} in all.")
        x = in_range(x, what)
        # With the shape of the dataset there is nothing to interpolate: no digit changes.
        if x.shape[1:] == self.input_shape and not (self.ink and (x != x[:, :1]).any()):
            return self._right_way_round(x, index or 0)
        pixels = np.rint(x * 255).astype(np.uint8) if x.dtype.kind == "f" else x
        found = [self._picture(picture_of(one), f"Input {i}") for i, one in enumerate(pixels, start=index or 0)]
        return np.stack(found) if found else np.zeros((0, *self.input_shape), np.float32)

    def _numbers(self, x: Numbers, what: str, first: int) -> Floats:
        """Inputs that are no pictures, or pictures as floats of a scale of their own."""
        if x.shape[1:] != self.input_shape or (self.pictures and x.dtype.kind != "f"):
            kind = "floats of its dataset's own scale" if self.dtype == "float32" else "numbers"
            raise DataError(
                f"{what} {x.dtype} {list(x.shape)}; the model was trained on {kind}, expected "
                f"[B, {', '.join(map(str, self.input_shape))}]. Prepare them as that dataset was."
            )
        if self.dtype == "uint8":
            x = in_range(x, what, plain=True)
            return x.astype(np.float32) if x.dtype.kind == "f" else x.astype(np.float32) / np.float32(255)
        with np.errstate(over="ignore"):
            rows: Floats = x.astype(np.float32)
        check_finite(rows, first)
        return rows

    def _picture(self, image: Image.Image, name: str) -> Floats:
        channels, height, width = self.input_shape
        size = (height, width)
        pixels = drawn(image, channels, size, name, fill=self.fill) if self.ink else fitted(image, channels, size)
        return pixels.astype(np.float32) / np.float32(255)

    def _right_way_round(self, x: Numbers, first: int) -> Floats:
        """Invert pictures of ink on a light background; ``x`` has the dataset's shape, uint8 or floats."""
        floating = x.dtype.kind == "f"
        if not self.ink:
            return x.astype(np.float32) if floating else x.astype(np.float32) / np.float32(255)
        found = np.empty(x.shape, np.float32)
        for i, one in enumerate(x):
            name = f"Input {first + i}"
            if not floating:
                found[i] = bright_ink(one[0], name).astype(np.float32) / np.float32(255)
                continue
            paper = background(np.rint(one[0] * 255), name)
            level = np.float32(paper / 255)
            found[i] = one if paper < DARK else np.clip(level - one, 0, None) / level
        return found


def _at(index: int, error: DataError) -> DataError:
    """The error with the place of an input that has no name of its own."""
    return error if error.message.startswith("Input ") else DataError(f"Input {index}: {error.message}")


__all__ = ["Floats", "Preprocessing"]
