"""Datasets of classes: built once into memory-mapped Arrow shards, then gathered from in microseconds."""

from distmeta.data.arrays import from_arrays
from distmeta.data.catalog import DATASETS, resolve
from distmeta.data.glyphs import build_glyphs
from distmeta.data.image_folder import build_image_folder
from distmeta.data.manifest import Manifest
from distmeta.data.omniglot import build_omniglot
from distmeta.data.omniglot_runs import build_omniglot_runs
from distmeta.data.shards import ClassImages, ClassSplit, ShardDataset, VerifyReport, inspect, verify, write_dataset

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
    "from_arrays",
    "inspect",
    "resolve",
    "verify",
    "write_dataset",
]
