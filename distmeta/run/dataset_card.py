"""The data behind a run, as its report states them: name, licence, classes by split, and whether splits leak."""

from __future__ import annotations

from typing import Any

from distmeta.data.dataset import ShardDataset
from distmeta.data.leaks import identical_across_splits
from distmeta.tasks.base import TaskDistribution

_IMAGES, _BYTES = 200_000, 2**28  # read again for the leak check up to here: a fraction of a second
_NAMES = 500  # class names per split


def dataset_card(tasks: TaskDistribution) -> dict[str, Any]:
    """Facts about the data of a run, JSON-ready.

    Args:
        tasks: what the run draws its tasks from; those without a dataset have a name, shapes and a fingerprint only.
    """
    facts, spec = tasks.describe(), tasks.spec
    card: dict[str, Any] = {
        "name": str(facts["name"]),
        "fingerprint": tasks.fingerprint,
        "input_shape": list(spec.input_shape),
        "splits": {split: {} for split in tasks.splits},
    }
    dataset = getattr(tasks, "dataset", None)
    if not isinstance(dataset, ShardDataset):
        return card
    manifest = dataset.manifest
    images, size = 0, 0
    for split, entry in manifest.splits.items():
        rows = [one.rows for one in entry.classes]
        card["splits"][split] = {
            "classes": len(rows),
            "images": sum(rows),
            "fewest": min(rows),
            "most": max(rows),
            "names": [one.name for one in entry.classes[:_NAMES]],
        }
        images, size = images + sum(rows), size + sum(shard.bytes for shard in entry.shards)
    card |= {
        "licence": manifest.licence,
        "provenance": manifest.provenance,
        "stored_as": f"{manifest.dtype}, shape {' x '.join(map(str, manifest.input_shape))}",
        # Opening the dataset refused a class that is in two splits.
        "classes_disjoint": True,
        "images": images,
    }
    if images <= _IMAGES and size <= _BYTES:
        card["identical"] = [
            {"first": one.first, "second": one.second, "images": one.images, "example": list(one.example)}
            for one in identical_across_splits(dataset)
        ]
    return card
