"""Datasets of classes: built once into memory-mapped Arrow shards, then gathered from in microseconds.

Each name is loaded when it is first used, as in ``distmeta`` itself: processes that only read pictures import neither
torch nor pyarrow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distmeta.data.catalog import DATASETS, resolve
    from distmeta.data.dataset import ClassSplit, ShardDataset
    from distmeta.data.encoding import encode
    from distmeta.data.manifest import Manifest
    from distmeta.data.preprocessing import Preprocessing
    from distmeta.data.sources.arrays import from_arrays
    from distmeta.data.sources.glyphs import build_glyphs
    from distmeta.data.sources.image_folder import build_image_folder
    from distmeta.data.sources.omniglot import build_omniglot
    from distmeta.data.sources.omniglot_runs import build_omniglot_runs
    from distmeta.data.sources.torch_dataset import from_dataset
    from distmeta.data.verifying import VerifyReport, inspect, verify
    from distmeta.data.writer import ClassImages, write_dataset

_HOMES = {
    "catalog": ("DATASETS", "resolve"),
    "dataset": ("ClassSplit", "ShardDataset"),
    "encoding": ("encode",),
    "manifest": ("Manifest",),
    "preprocessing": ("Preprocessing",),
    "sources.arrays": ("from_arrays",),
    "sources.glyphs": ("build_glyphs",),
    "sources.image_folder": ("build_image_folder",),
    "sources.omniglot": ("build_omniglot",),
    "sources.omniglot_runs": ("build_omniglot_runs",),
    "sources.torch_dataset": ("from_dataset",),
    "verifying": ("VerifyReport", "inspect", "verify"),
    "writer": ("ClassImages", "write_dataset"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "DATASETS",
    "ClassImages",
    "ClassSplit",
    "Manifest",
    "Preprocessing",
    "ShardDataset",
    "VerifyReport",
    "build_glyphs",
    "build_image_folder",
    "build_omniglot",
    "build_omniglot_runs",
    "encode",
    "from_arrays",
    "from_dataset",
    "inspect",
    "resolve",
    "verify",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"distmeta.data.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'distmeta.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
