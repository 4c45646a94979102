"""Datasets of classes: built once into memory-mapped Arrow shards, then gathered from in microseconds."""

from distmeta.data.catalog import DATASETS, resolve
from distmeta.data.dataset import ClassSplit, ShardDataset
from distmeta.data.encode import encode
from distmeta.data.manifest import Manifest
from distmeta.data.sources.arrays import from_arrays
from distmeta.data.sources.glyphs import build_glyphs
from distmeta.data.sources.image_folder import build_image_folder
from distmeta.data.sources.omniglot import build_omniglot
from distmeta.data.sources.omniglot_runs import build_omniglot_runs
from distmeta.data.verify import VerifyReport, inspect, verify
from distmeta.data.writer import ClassImages, write_dataset

__all__ = [
    "DATASETS",
    "ClassImages",
    "ClassSplit",
    "Manifest",
    "ShardDataset",
    "VerifyReport",
    "build_glyphs",
    "build_image_folder",
    "build_omniglot",
    "build_omniglot_runs",
    "encode",
    "from_arrays",
    "inspect",
    "resolve",
    "verify",
    "write_dataset",
]
