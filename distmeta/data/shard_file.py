"""One Arrow shard: an uncompressed IPC file with one record batch, rows sorted by class, read without a copy.

Columns: ``x: fixed_shape_tensor<uint8|float32>[C, H, W]`` and ``y: int32`` (global class id). The schema metadata says
which split the file belongs to and where each class starts, so a shard is whole without its manifest.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from distmeta.errors import ShardCorrupt

VERSION = 1

Images = npt.NDArray[Any]
"""``[n, ...]``, uint8 or float32."""


def floats(x: Images) -> torch.Tensor:
    """Convert images to the floats that networks take; bytes are scaled to 0..1."""
    images = torch.from_numpy(x).float()
    return images.div_(255) if x.dtype == np.uint8 else images


def into_floats(x: Images, out: torch.Tensor) -> None:
    """Write what :func:`floats` returns into ``out``, float32 of the same shape."""
    out.copy_(torch.from_numpy(x))
    if x.dtype == np.uint8:
        out.div_(255)


@dataclass(frozen=True)
class ShardHeader:
    """What the schema metadata of a shard says.

    Args:
        split: the split that the shard belongs to.
        ids: global class ids, in row order.
        names: class names, in row order.
        offsets: class i holds rows ``offsets[i]`` to ``offsets[i+1] - 1``; one more entry than classes.
    """

    split: str
    ids: tuple[int, ...]
    names: tuple[str, ...]
    offsets: tuple[int, ...]

    def to_metadata(self) -> dict[str, str]:
        """Key and value strings for an Arrow schema."""
        return {
            "distmeta.version": str(VERSION),
            "distmeta.split": self.split,
            "distmeta.class_ids": json.dumps(self.ids),
            "distmeta.class_names": json.dumps(self.names),
            "distmeta.class_offsets": json.dumps(self.offsets),
        }

    @staticmethod
    def from_metadata(metadata: dict[bytes, bytes] | None) -> ShardHeader:
        """The reverse of :meth:`to_metadata`.

        Raises:
            KeyError, ValueError, TypeError: the metadata is not a shard's; callers name the file.
        """
        values = metadata or {}
        version = values[b"distmeta.version"].decode()
        if version != str(VERSION):
            raise ValueError(f"it has shard version {version}, this distmeta reads version {VERSION}")
        return ShardHeader(
            split=values[b"distmeta.split"].decode(),
            ids=tuple(int(i) for i in json.loads(values[b"distmeta.class_ids"])),
            names=tuple(str(name) for name in json.loads(values[b"distmeta.class_names"])),
            offsets=tuple(int(i) for i in json.loads(values[b"distmeta.class_offsets"])),
        )


@dataclass(frozen=True)
class Shard:
    """An open shard.

    Args:
        header: its schema metadata.
        x: ``[rows, ...]`` read-only view of the mapped file; no byte is read before it is indexed.
        batch: the record batch that ``x`` belongs to.
    """

    header: ShardHeader
    x: Images
    batch: Any

    @property
    def y(self) -> npt.NDArray[np.int32]:
        """``[rows]`` int32 global class ids."""
        labels: npt.NDArray[np.int32] = self.batch.column("y").to_numpy(zero_copy_only=True)
        return labels


def write_shard(path: Path, header: ShardHeader, x: Images) -> None:
    """Write one shard and make it durable.

    Args:
        path: the file; an existing one is replaced.
        header: split, classes and offsets.
        x: ``[rows, ...]`` C-contiguous, rows in the order of ``header.offsets``.
    """
    counts = np.diff(header.offsets)
    columns = [pa.FixedShapeTensorArray.from_numpy_ndarray(x), pa.array(np.repeat(header.ids, counts), pa.int32())]
    schema = pa.schema(
        [pa.field("x", columns[0].type, nullable=False), pa.field("y", pa.int32(), nullable=False)],
        metadata=header.to_metadata(),
    )
    with path.open("wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))
        file.flush()
        os.fsync(file.fileno())


def open_shard(path: Path, dtype: str, input_shape: tuple[int, ...]) -> Shard:
    """Map a shard into memory; nothing is copied.

    Args:
        path: the Arrow file.
        dtype: expected type of ``x``.
        input_shape: expected shape of one row of ``x``.

    Raises:
        ShardCorrupt: not an Arrow file, or not with the expected schema.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(os.fspath(path)))
        header = ShardHeader.from_metadata(reader.schema.metadata)
        expected = [pa.fixed_shape_tensor(pa.from_numpy_dtype(dtype), list(input_shape)), pa.int32()]
        if reader.schema.names != ["x", "y"] or reader.schema.types != expected:
            raise ValueError(f"its columns are {', '.join(f'{f.name}: {f.type}' for f in reader.schema)}")
        if reader.num_record_batches != 1:
            raise ValueError(f"it has {reader.num_record_batches} record batches, expected 1")
        batch = reader.get_batch(0)
        if header.offsets[-1] != batch.num_rows or len(header.offsets) != len(header.names) + 1:
            raise ValueError(f"its offsets end at {header.offsets[-1]}, but it has {batch.num_rows} rows")
        # Not ExtensionArray.to_numpy: that one copies into an array of Python objects.
        x = batch.column("x").to_numpy_ndarray()
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, IndexError) as error:
        reason = f"metadata key {error} is absent" if isinstance(error, KeyError) else str(error)
        raise ShardCorrupt(
            f"{path} is not a shard of {dtype} {list(input_shape)}: {reason}. "
            f"Copy the file again from its source, or build the dataset again."
        ) from None
    return Shard(header, x, batch)


def pixel_bytes(x: Images) -> memoryview:
    """The bytes of a C-contiguous array, in order, without a copy."""
    return x.reshape(-1).view(np.uint8).data
