"""Datasets from a ``torch.utils.data.Dataset`` of (image, label), such as those of torchvision."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from distmeta.data.manifest import Manifest
from distmeta.data.pictures import Recipe, picture_of
from distmeta.data.pixel_arrays import as_array, channels_first, check_finite, in_range, is_picture
from distmeta.data.sources.arrays import ClassNames, Splits, divide, plain_label, refuse_bits, rows_of, taken
from distmeta.data.splits import parse_percentages
from distmeta.data.writer import Progress, cannot_write, refuse_existing, write_dataset
from distmeta.errors import DataError, foreign


def from_dataset(
    dataset: Any,
    out: Path | str,
    *,
    splits: Splits = "64/16/20",
    class_names: ClassNames = None,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    ink: bool = False,
    allow_duplicates: bool = False,
    name: str | None = None,
    licence: str = "not stated",
    seed: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Write a torch ``Dataset`` of (image, label) as a dataset, classes divided over the splits.

    Every item is read once, in order, and waits in a temporary file in ``out`` until its class is written: memory does
    not grow with the number of items. Give a dataset without random augmentations and without ``Normalize``.

    Args:
        dataset: anything with ``len`` and items, or iterable, whose items begin with an image and a label. Images are
            PIL pictures (or paths), arrays or tensors: ``[H, W]``, ``[C, H, W]`` or ``[H, W, C]``, integers 0..255 or
            floats 0..1, stored as uint8; or feature vectors ``[D]`` of floats, stored as float32. Labels are integers,
            strings, or anything hashable but floats.
        out: folder for the dataset.
        splits: percentages of *classes* for meta_train/meta_validation/meta_test, or the labels of each split.
        class_names: class name of each label; the label as text by default.
        size: height and width in pixels, as in :func:`~distmeta.data.build_image_folder`; by default all must agree.
        channels: 1 (grey) or 3 (RGB); by default those of the first image, and all must agree.
        ink: whether the images are drawings, as in :func:`~distmeta.data.build_image_folder`.
        allow_duplicates: write the dataset although images of two splits are identical.
        name: name of the dataset; its class by default.
        licence: licence of the images, in words.
        seed: seed of the division by percentages.
        progress: called with (items read, items in total or ``None``).

    Returns:
        The manifest; images of a class keep their order.

    Raises:
        DataError: an item is no (image, label) or cannot be converted; the message has its index. And the errors of
            :func:`~distmeta.data.from_arrays`.
        SplitLeak: a class, or the pixels of an image, are in two splits.

    Example:
        >>> import tempfile, torch
        >>> images = torch.rand(10, 3, 8, 8)
        >>> dataset = torch.utils.data.TensorDataset(images, torch.arange(10) // 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     manifest = from_dataset(dataset, f"{folder}/out", splits="60/20/20")
        >>> manifest.name, {split: [c.name for c in entry.classes] for split, entry in manifest.splits.items()}
        ('TensorDataset', {'meta_train': ['1', '2', '3'], 'meta_validation': ['0'], 'meta_test': ['4']})
    """
    recipe = Recipe(None if size is None else (size, size), channels, ink)
    if isinstance(splits, str):
        parse_percentages(splits)  # before anything is read
    directory = Path(out)
    refuse_existing(directory)
    made = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            spill = _Spill(file, recipe)
            total = len(dataset) if hasattr(dataset, "__len__") else None
            for index, item in enumerate(_items(dataset)):
                spill.add(index, item)
                if progress is not None:
                    progress(index + 1, total)
            if not spill.labels:
                raise DataError(f"The {type(dataset).__name__} has no items; expected at least one (image, label).")
            provenance: dict[str, Any] = {
                "source": "torch dataset",
                "dataset": f"{type(dataset).__module__}.{type(dataset).__qualname__}",
                "splits": splits if isinstance(splits, str) else "given",
                "seed": seed,
                "size": size,
                "channels": channels,
                "ink": ink,
            }
            refuse_bits(spill.highest, "All images are")
            images, rows = spill.images(), rows_of(spill.labels)
            divided = divide(rows, splits, class_names, seed)
            classes = taken(images, rows, divided, allow_duplicates or images.ndim < 3, provenance)
            return write_dataset(
                directory, classes, name=name or type(dataset).__name__, provenance=provenance, licence=licence
            )
    except OSError as error:
        raise cannot_write(directory, error) from None
    finally:
        if made:
            with suppress(OSError):  # it holds a dataset
                directory.rmdir()


def _items(dataset: Any) -> Iterator[Any]:
    """Items in order; errors of the dataset's own code name the index."""
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        items: Iterator[Any] = (dataset[index] for index in range(len(dataset)))
    elif isinstance(dataset, Iterable):
        items = iter(dataset)
    else:
        raise DataError(
            f"A {type(dataset).__name__} has no items; expected a torch.utils.data.Dataset of (image, label)."
        )
    index = 0
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:
            fix = "Repair the dataset: dataset[index] must return (image, label)."
            raise foreign(DataError, f"Item {index} of the {type(dataset).__name__} failed", error, fix) from error
        yield item
        index += 1


class _Spill:
    """Images in a file, in the order of the items, and their labels."""

    def __init__(self, file: IO[bytes], recipe: Recipe) -> None:
        self.labels: list[Hashable] = []
        self.highest = 0
        self._file = file
        self._recipe = recipe
        self._like: tuple[np.dtype[Any], tuple[int, ...]] | None = None

    def add(self, index: int, item: Any) -> None:
        """Convert and keep an item.

        Raises:
            DataError: it is no (image, label), or unlike the first.
        """
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise DataError(f"Item {index} is a {type(item).__name__}; expected (image, label).")
        try:
            label = plain_label(item[1])
        except TypeError as error:
            raise DataError(
                f"Item {index}: {error}; expected an integer, a string or another hashable value. Convert it, for "
                "one-hot labels with label.argmax()."
            ) from None
        image = self._image(item[0], index)
        self._like = self._like or (image.dtype, image.shape)
        dtype, shape = self._like
        if (image.dtype, image.shape) != (dtype, shape):
            raise DataError(
                f"Item {index} is {image.dtype} {list(image.shape)}, but item 0 is {dtype} {list(shape)}; expected one "
                "kind. Give size= and channels= to convert all images, for example size=84, channels=3."
            )
        self._file.write(image.tobytes())
        self.labels.append(label)

    def images(self) -> npt.NDArray[Any]:
        """``[n, ...]``, mapped from the file."""
        assert self._like is not None, "there are items"
        self._file.flush()
        dtype, shape = self._like
        return np.memmap(self._file, dtype, "r", shape=(len(self.labels), *shape))

    def _image(self, image: Any, index: int) -> npt.NDArray[Any]:
        name = f"Item {index}"
        if is_picture(image):
            self.highest = 255  # files have a range of their own
            try:
                return self._recipe.make(image, name)
            except DataError as error:
                raise DataError(f"{name}: {error.message}") from None
        x = as_array(image)
        if x is None or x.dtype.kind not in "buif":
            seen = type(image).__name__ if x is None else f"{x.dtype} array"
            raise DataError(f"{name}: the image is a {seen}; expected a PIL image, an array or a tensor.")
        if x.dtype.kind == "f":
            check_finite(x[None], name)
        if x.ndim == 1 and x.dtype.kind == "f" and self._recipe == Recipe():
            return x.astype(np.float32)
        pixels = in_range(channels_first(x[None], (), name), f"{name} is", plain=True)[0]
        if pixels.dtype.kind == "f":
            pixels = np.rint(pixels * 255).astype(np.uint8)
        self.highest = max(self.highest, int(pixels.max()))
        return self._recipe.make(picture_of(pixels), name)
