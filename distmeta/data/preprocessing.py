"""How the inputs of a dataset were made, so that new pictures become inputs in the same way.

A dataset of pictures has one size, a number of channels, and one way round: ink datasets (Omniglot, glyphs) have bright
ink on a background of 0. A trained run keeps this and prepares what it is given: files, pictures, arrays of bytes or of
floats. What cannot be converted is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from distmeta.data.manifest import Manifest
from distmeta.data.pictures import MAX_PIXELS, fitted, open_picture
from distmeta.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Floats = npt.NDArray[np.float32]

_INK_SOURCES = ("glyphs", "omniglot", "omniglot-runs")
_LIGHT, _DARK = 170, 85  # a background between is neither


@dataclass(frozen=True)
class Preprocessing:
    """What turns a picture, or a row of numbers, into an input of a trained model.

    Args:
        input_shape: shape of one input: ``(C, H, W)`` for pictures.
        dtype: of the dataset's numbers: ``"uint8"`` (networks see 0..1), or ``"float32"`` (taken as they are).
        ink: whether inputs are bright ink on a background of 0. A picture on a light background is then inverted.

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

    @classmethod
    def of(cls, manifest: Manifest) -> Preprocessing:
        """That of a dataset; datasets of earlier versions tell by their source."""
        source = str(manifest.provenance.get("source", ""))
        default = manifest.name in _INK_SOURCES and "image folder" not in source and "numpy" not in source
        return cls(manifest.input_shape, manifest.dtype, ink=bool(manifest.provenance.get("ink", default)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: the values are none.
        """
        dtype = values["dtype"]
        if dtype not in ("uint8", "float32"):
            raise ValueError(f"dtype {dtype!r} is neither uint8 nor float32")
        return cls(tuple(int(n) for n in values["input_shape"]), dtype, bool(values["ink"]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "input_shape": list(self.input_shape)}

    @property
    def pictures(self) -> bool:
        """Whether inputs are pictures: 1 or 3 channels, height, width."""
        return len(self.input_shape) == 3 and self.input_shape[0] in (1, 3)

    def inputs(self, given: Any, *, max_pixels: int = MAX_PIXELS) -> Floats:
        """Prepare inputs: decode, turn, scale, crop, convert colours, invert.

        Args:
            given: a sequence of pictures (paths, bytes of files, PIL images, arrays), or one array or tensor with a
                leading batch axis: ``[B, H, W]``, ``[B, C, H, W]``, ``[B, H, W, C]``, uint8 (0..255) or floats (0..1);
                or ``[B, *input_shape]`` numbers where inputs are no pictures. A single path or PIL image is a batch of
                one.
            max_pixels: width times height of a picture, at most.

        Returns:
            ``[B, *input_shape]`` float32, as the network was trained on them.

        Raises:
            DataError: an input cannot be converted; the message has its place and the fix.
        """
        from PIL import Image

        if isinstance(given, str | bytes | Path | Image.Image):
            given = [given]
        array = _array(given)
        if array is not None:
            return self._batch(array, max_pixels)
        if not isinstance(given, Sequence):
            raise DataError(
                f"The inputs are a {type(given).__name__}; expected a list of pictures (paths, PIL images, arrays), or "
                "one array [B, ...]."
            )
        found = [self._one(item, index, max_pixels) for index, item in enumerate(given)]
        return np.stack(found) if found else np.zeros((0, *self.input_shape), np.float32)

    def _one(self, item: Any, index: int, max_pixels: int) -> Floats:
        from PIL import Image

        if isinstance(item, str | bytes | Path | Image.Image):
            if not self.pictures:
                raise DataError(
                    f"Input {index} is a picture; the model takes numbers of shape {list(self.input_shape)}. Give an "
                    f"array [B, {', '.join(map(str, self.input_shape))}]."
                )
            return self._picture(open_picture(item, max_pixels=max_pixels), index)
        array = _array(item)
        if array is None:
            raise DataError(
                f"Input {index} is a {type(item).__name__}; expected a path, a PIL image, an array or a tensor."
            )
        try:
            return self._batch(array[None], max_pixels)[0]
        except DataError as error:
            raise DataError(f"Input {index}: {error.message}") from None

    def _batch(self, x: npt.NDArray[Any], max_pixels: int) -> Floats:
        """Prepare an array with a leading batch axis."""
        if x.dtype == np.bool_:
            x = x.astype(np.uint8) * 255
        if not (np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer)):
            raise DataError(f"The inputs are {x.dtype}; expected uint8 (0 to 255) or floats.")
        if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
            row = int(np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))[0])
            raise DataError(f"Input {row} has NaN or infinite numbers; expected finite ones. Repair or leave it out.")
        if not self.pictures:
            if x.shape[1:] != self.input_shape:
                raise DataError(
                    f"The inputs have shape {list(x.shape)}; expected [B, {', '.join(map(str, self.input_shape))}]."
                )
            scaled = x.dtype == np.uint8 and self.dtype == "uint8"
            rows: Floats = x.astype(np.float32)
            rows /= np.float32(255 if scaled else 1)
            return rows
        x = _channels_first(x, self.input_shape)
        if x.shape[2] * x.shape[3] > max_pixels:
            raise DataError(
                f"The pictures have {x.shape[3]}x{x.shape[2]} pixels; expected at most {max_pixels:,} in all."
            )
        if self.dtype == "float32":
            return self._own_numbers(x)
        floating = np.issubdtype(x.dtype, np.floating)
        low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
        if low < 0 or high > (1 if floating else 255):
            raise DataError(
                f"The inputs are {x.dtype} from {low:g} to {high:g}; expected "
                f"{'floats from 0 to 1' if floating else 'integers from 0 to 255'}. Undo the normalisation, or "
                f"{'divide by 255' if floating and low >= 0 else 'give uint8 pictures'}."
            )
        if x.shape[1:] == self.input_shape:  # nothing to interpolate: no digit may change
            images = x.astype(np.float32) if floating else x.astype(np.float32) / np.float32(255)
            return self._right_way_round(images)
        pixels = np.rint(x * 255).astype(np.uint8) if floating else x.astype(np.uint8)
        found = [self._picture(_picture_of(one), index) for index, one in enumerate(pixels)]
        return np.stack(found) if found else np.zeros((0, *self.input_shape), np.float32)

    def _own_numbers(self, x: npt.NDArray[Any]) -> Floats:
        """Pictures of a dataset of floats, whose scale is its own: nothing can be converted."""
        if x.shape[1:] != self.input_shape or not np.issubdtype(x.dtype, np.floating):
            raise DataError(
                f"The inputs are {x.dtype} {list(x.shape)}; the model was trained on floats of its dataset's own "
                f"scale, expected floats [B, {', '.join(map(str, self.input_shape))}]. Prepare them as it was."
            )
        return x.astype(np.float32)

    def _picture(self, image: Image.Image, index: int) -> Floats:
        channels, height, width = self.input_shape
        if self.dtype == "float32":
            raise DataError(
                f"Input {index} is a picture; the model was trained on floats of its dataset's own scale. Give arrays "
                f"[B, {channels}, {height}, {width}], prepared as that dataset was."
            )
        if self.ink:
            return self._ink(fitted(image, 1, None)[0], index)
        pixels = fitted(image, channels, (height, width))
        return pixels.astype(np.float32) / np.float32(255)

    def _ink(self, grey: npt.NDArray[np.uint8], index: int) -> Floats:
        """Scale a drawing with its ink bright; the whole drawing is kept, as far as it is not square."""
        from PIL import Image

        bright = 255 - grey if _light(grey, index) else grey
        channels, height, width = self.input_shape
        picture = _padded(bright, height / width)
        if picture.shape != (height, width):
            scaled = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
            picture = np.asarray(scaled, np.uint8)
        one = picture[None].astype(np.float32) / np.float32(255)
        return np.repeat(one, channels, 0)

    def _right_way_round(self, images: Floats) -> Floats:
        if not self.ink or not len(images):
            return images
        light = [_light(np.rint(image.mean(0) * 255), index) for index, image in enumerate(images)]
        return np.where(np.array(light)[:, None, None, None], np.float32(1) - images, images)


def _array(given: Any) -> npt.NDArray[Any] | None:
    """``given`` as an array if it is one, a tensor included; ``None`` otherwise."""
    if isinstance(given, np.ndarray):
        return given if given.dtype != object else None
    if hasattr(given, "detach") and hasattr(given, "cpu"):  # a tensor, without importing torch
        found: npt.NDArray[Any] = given.detach().cpu().numpy()
        return found
    return None


def _channels_first(x: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Take pictures ``[B, H, W]``, ``[B, C, H, W]`` or ``[B, H, W, C]`` as ``[B, C, H, W]``."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[1:] == shape:
        return x
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] not in (1, 3):
        return x
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3):
        return x.transpose(0, 3, 1, 2)
    raise DataError(
        f"The inputs have shape {list(x.shape)}; expected pictures [B, H, W], [B, C, H, W] or [B, H, W, C] with 1 or 3 "
        "channels. For one picture, give x[None]."
    )


def _picture_of(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """``[C, H, W]`` uint8 as a picture."""
    from PIL import Image

    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _light(grey: npt.NDArray[Any], index: int) -> bool:
    """Whether the background of ``[H, W]`` greys 0..255 is light: the median along its border."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    background = float(np.median(border))
    if _DARK < background < _LIGHT:
        raise DataError(
            f"Input {index} has a background of {background:.0f}, neither dark nor light (0 to 255, median along its "
            "border); the model was trained on ink on a plain background. Crop it, or raise its contrast."
        )
    return background >= _LIGHT


def _padded(picture: npt.NDArray[np.uint8], ratio: float) -> npt.NDArray[np.uint8]:
    """Add background until height / width is ``ratio``: a drawing is not cropped."""
    height, width = picture.shape
    tall, wide = max(height, round(width * ratio)), max(width, round(height / ratio))
    if tall * wide > MAX_PIXELS:
        raise DataError(
            f"A drawing has {width}x{height} pixels, and {wide}x{tall} with the background that its shape needs; "
            f"expected at most {MAX_PIXELS:,} in all. Crop it."
        )
    above, left = (tall - height) // 2, (wide - width) // 2
    return np.pad(picture, ((above, tall - height - above), (left, wide - width - left)))


__all__ = ["Floats", "Preprocessing"]
