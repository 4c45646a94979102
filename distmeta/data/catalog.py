"""Datasets by name, which ``--data`` accepts beside folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from distmeta.config import did_you_mean
from distmeta.data.cache import build_once, cache_dir
from distmeta.data.sources.glyphs import build_glyphs
from distmeta.errors import DataError, ManifestError
from distmeta.files import MANIFEST

DATASETS: Mapping[str, str] = MappingProxyType(
    {
        "glyphs": "characters of five scripts in 8 to 16 font faces, 28x28; built in seconds, no download",
        "omniglot": "1,623 handwritten characters of 50 alphabets, 20 drawers each, 28x28; downloaded or from the zips",
        "omniglot-runs": "Lake's runs (20 of 20 one-shot trials) and the background alphabets, 28x28; from the zips",
    }
)
"""Dataset name to its description in one line."""

GLYPHS_SIZE = 28
GLYPHS_INSTANCES = 20


def resolve(data: str | Path) -> Path:
    """Find the folder of a dataset, given as a folder or as a name of :data:`DATASETS`.

    ``glyphs`` is built into the cache on first use, also when many processes ask at once. The others need a download
    and must have been built.

    Args:
        data: a folder or a name; a folder of that name has priority if it holds a dataset.

    Returns:
        The folder, for :meth:`~distmeta.data.dataset.ShardDataset.open`.

    Raises:
        ManifestError: ``data`` names a dataset that needs a download and is not in the cache.
        DataError: ``data`` is neither a folder nor a known name.

    Example:
        >>> resolve("glyhps")
        Traceback (most recent call last):
        ...
        distmeta.errors.DataError: there is no folder and no dataset 'glyhps'. Did you mean 'glyphs'? ...
    """
    path = Path(data)
    # os.path, since pathlib raises if a parent folder may not be read.
    if os.path.isdir(path) and (str(data) not in DATASETS or os.path.isfile(path / MANIFEST)):
        return path
    if str(data) == "glyphs":
        target = cache_dir() / f"glyphs-{GLYPHS_SIZE}-{GLYPHS_INSTANCES}-v1"
        return build_once(target, lambda out: build_glyphs(out, size=GLYPHS_SIZE, instances=GLYPHS_INSTANCES))
    if str(data) in DATASETS:
        built = cache_dir() / str(data)
        if os.path.isfile(built / MANIFEST):
            return built
        raise ManifestError(
            f"{data} is not built in {built}. Build it with: distmeta data build {data} --out DIR, "
            f"then give --data DIR."
        )
    raise DataError(
        f"there is no folder and no dataset '{data}'.{did_you_mean(str(data), DATASETS)} "
        f"Give a folder with a dataset, or one of: {', '.join(DATASETS)}."
    )
