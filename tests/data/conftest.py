"""Small datasets for the tests of distmeta.data."""

from pathlib import Path

import numpy as np
import pytest

from distmeta.data import ClassImages, build_omniglot, write_dataset

SHAPE = (2, 3, 4)


def classes(dtype=np.uint8, counts=(5, 3, 7), splits=("meta_train", "meta_validation", "meta_test")):
    """``len(counts)`` classes in each split, with different images everywhere."""
    made = np.random.default_rng(0)
    for split in splits:
        for i, n in enumerate(counts):
            yield ClassImages(split, f"{split}/{i}", made.integers(0, 256, (n, *SHAPE)).astype(dtype))


def build(out, images=None, **settings):
    settings = {"name": "tiny", "provenance": {"made": "in a test"}, "licence": "CC0", **settings}
    return write_dataset(out, classes() if images is None else images, **settings)


@pytest.fixture
def dataset_dir(tmp_path) -> Path:
    """Three classes in each split, one shard per split."""
    build(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="session")
def omniglot_source() -> Path:
    """The folder of the official archives."""
    source = Path(__file__).parents[2].parent / "shared" / "data" / "omniglot"
    if not (source / "images_background.zip").is_file():
        pytest.skip("the Omniglot archives are not in ../shared/data/omniglot")
    return source


@pytest.fixture(scope="session")
def omniglot_dir(omniglot_source, tmp_path_factory) -> Path:
    """Omniglot with the vinyals split, built once."""
    out = tmp_path_factory.mktemp("omniglot") / "omniglot"
    build_omniglot(out, source=omniglot_source)
    return out
