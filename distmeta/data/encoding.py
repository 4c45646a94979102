"""Feature shards: every picture of a dataset through a frozen encoder, once.

The result is a dataset like any other, with vectors in place of pictures: ``FewShot(data=OUT)`` draws tasks of it. It
is written over several processes in *parts*, some classes each::

    OUT/.encoding-KEY/00012   features of a part under their sha256, until the dataset is finished
    OUT/manifest.json         written last: the commit point

A second call after an interruption takes the parts that are there. KEY is a digest of all that the features depend on
(encoder, dataset, batch size, device, threads, torch), so parts of another encoder are never used. A batch is made of
neighbouring images of one class: the number of processes changes no bit.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distmeta.config import digest
from distmeta.data.catalog import resolve
from distmeta.data.dataset import ShardDataset
from distmeta.data.encoder import FrozenEncoder, same_bits
from distmeta.data.manifest import Manifest
from distmeta.data.picture_workers import cpus
from distmeta.data.writer import ClassImages, Progress, refuse_existing, write_dataset
from distmeta.errors import ConfigError, DataError, ModelContractError
from distmeta.files import write_whole
from distmeta.malloc import keep_freed_memory
from distmeta.types import Split

PART_IMAGES = 128
"""Images in a part, at least; what an interruption can cost each process. A class is never divided."""

THREADS = 1
"""CPU threads of a process. Not a setting: features would have other last bits."""

FOLDER = ".encoding-"


def encode(
    dataset: Path | str,
    encoder: str,
    out: Path | str,
    *,
    workers: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    encoder_classes: Path | str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Manifest:
    r"""Write the features of every image of a dataset as a dataset: same splits, classes, names and order of rows.

    Args:
        dataset: folder or name of a dataset.
        encoder: ``FILE:FUNCTION``, see :mod:`distmeta.data.encoder`. The function is called in every process.
        out: folder for the features. A second call after an interruption continues there.
        workers: processes; one per CPU when left out, one on a GPU. Any number gives the same bytes.
        batch_size: images in one forward pass, at most; all are of one class.
        device: where the encoder computes, ``"cpu"`` or ``"cuda"``.
        encoder_classes: text file with the classes that the encoder was trained on, one per line (synonyms between
            commas). Those that are meta_test classes are counted and recorded.
        progress: called with (classes done, classes in total).
        say: receives a line where the encoder has seen meta_test classes; it is a Python warning when left out.

    Returns:
        The manifest. Rows are ``[D]`` float32; ``provenance`` has the source, the encoder with its digests, and the
        overlap with the encoder's classes.

    Raises:
        ConfigError: the encoder's file or function, or a setting, cannot be used.
        ModelContractError: the encoder does not map pictures ``[B, C, H, W]`` to features ``[B, D]``, or not always to
            the same.
        DataError: the dataset cannot be read, ``out`` holds one already, or a process ended.

    Example:
        >>> import tempfile
        >>> from distmeta.data import from_arrays
        >>> program = "import torch\ndef encoder():\n    return torch.nn.Flatten()\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "flat.py").write_text(program)
        ...     x, y = np.arange(50 * 64).reshape(50, 1, 8, 8) // 50, np.repeat(np.arange(5), 10)
        ...     _ = from_arrays(x.astype(np.uint8), y, f"{folder}/pictures", splits="60/20/20")
        ...     manifest = encode(f"{folder}/pictures", f"{folder}/flat.py:encoder", f"{folder}/features", workers=1)
        >>> manifest.input_shape, manifest.dtype, manifest.provenance["encoder"]["function"]
        ((64,), 'float32', 'flat.py:encoder')
    """
    if batch_size < 1 or (workers is not None and workers < 1):
        raise ConfigError(f"batch_size={batch_size}, workers={workers}; expected numbers of at least 1.")
    directory = Path(out).absolute()
    refuse_existing(directory)
    source = ShardDataset.open(resolve(dataset))
    seen = None if encoder_classes is None else _overlap(source, Path(encoder_classes))
    keep_freed_memory()
    with same_bits(THREADS):
        frozen = FrozenEncoder.load(encoder, device)
        features = _probe(frozen, source)
    made_of = {
        "dataset": source.fingerprint,
        "weights_sha256": frozen.weights_sha256,
        "source_sha256": frozen.source_sha256,
        "batch_size": batch_size,
        "device": device,
        "threads": THREADS,
        "torch": torch.__version__,
    }
    folder = directory / f"{FOLDER}{digest(made_of)[:16]}"
    setup = _Setup(source, str(folder), _absolute(encoder), frozen.weights_sha256, device, batch_size, features)
    parts = _divide(source)
    if workers is None:
        workers = 1 if torch.device(device).type != "cpu" else cpus()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for other in directory.glob(f"{FOLDER}*"):
            if other != folder:
                shutil.rmtree(other)
    except OSError as error:
        raise DataError(f"cannot write to {directory}: {error}. Give a folder that can be written.") from None
    provenance = {
        "source": "features of a frozen encoder",
        "encoder": {"function": frozen.name, "features": features, **_without(made_of, "dataset")},
        "encoder_classes": seen,
        "dataset": {
            "name": source.name,
            "fingerprint": source.fingerprint,
            "input_shape": list(source.input_shape),
            "provenance": source.manifest.provenance,
        },
    }
    if warning := seen_classes_warning(provenance):
        (say or _warn)(warning)
    try:
        with closing(_classes(setup, frozen, parts, min(workers, len(parts)))) as classes:
            manifest = write_dataset(
                directory,
                classes,
                name=f"{source.name}, {frozen.name}",
                licence=source.manifest.licence,
                provenance=provenance,
                progress=progress,
                total=sum(len(part.members) for part in parts),
            )
    except KeyboardInterrupt:
        done = sum(_read(setup, part) is not None for part in parts)
        raise KeyboardInterrupt(
            f"Interrupted: {done} of {len(parts)} parts are kept in {directory}; the same command continues."
        ) from None
    shutil.rmtree(folder, ignore_errors=True)
    return manifest


def seen_classes_warning(provenance: Mapping[str, Any]) -> str:
    """A warning where a dataset has features of an encoder that was trained on meta_test classes; else empty.

    Args:
        provenance: of the dataset.
    """
    seen = provenance.get("encoder_classes")
    if not isinstance(seen, dict) or not seen.get("in_meta_test"):
        return ""
    names = seen["in_meta_test"]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"{provenance['encoder']['function']} was trained on {len(names)} of the {seen['meta_test']} meta_test classes "
        f"({', '.join(names[:3])}{more}): results on them are no results on new classes. Say so, or use another "
        "encoder or split."
    )


@dataclass(frozen=True)
class _Member:
    """One class of the source: its place there, and its images."""

    split: Split
    position: int
    name: str
    rows: int


@dataclass(frozen=True)
class _Part:
    index: int
    members: tuple[_Member, ...]

    @property
    def rows(self) -> int:
        return sum(member.rows for member in self.members)


@dataclass(frozen=True)
class _Setup:
    """The settings that a process needs; small, sent with every part."""

    source: ShardDataset
    folder: str
    encoder: str
    weights_sha256: str
    device: str
    batch_size: int
    features: int

    def path(self, part: _Part) -> Path:
        return Path(self.folder) / f"{part.index:05d}"


def _divide(source: ShardDataset) -> list[_Part]:
    """All classes in the order of their ids, as parts of about :data:`PART_IMAGES` images."""
    members = [
        (entry.id, _Member(split, position, entry.name, entry.rows))
        for split, of in source.manifest.splits.items()
        for position, entry in enumerate(of.classes)
    ]
    parts: list[_Part] = []
    pending: list[_Member] = []
    for _, member in sorted(members, key=lambda pair: pair[0]):
        pending.append(member)
        if sum(m.rows for m in pending) >= PART_IMAGES:
            parts.append(_Part(len(parts), tuple(pending)))
            pending = []
    return [*parts, _Part(len(parts), tuple(pending))] if pending else parts


def _probe(encoder: FrozenEncoder, source: ShardDataset) -> int:
    """D, after the encoder was tried twice on one batch, before any process starts."""
    split = next(iter(source.manifest.splits))
    of = source.split(split)
    images = of.gather(np.zeros(2, np.int64), np.array([0, of.counts[0] - 1]))
    first, again = encoder.features(images), encoder.features(images)
    if not np.array_equal(first, again) or not encoder.unchanged():
        seen = "other features of the same pictures in a second call" if encoder.unchanged() else "changed weights"
        raise ModelContractError(
            f"{encoder.name} has {seen} in evaluation mode; expected a pure function of the picture. Remove random "
            "numbers (F.dropout needs training=self.training) and buffers that it writes to."
        )
    return int(first.shape[1])


def _classes(setup: _Setup, encoder: FrozenEncoder, parts: list[_Part], workers: int) -> Generator[ClassImages]:
    """Every class with its features, in order; parts that are absent are computed."""
    absent = {part.index for part in parts if _read(setup, part) is None}
    if workers == 1 or len(absent) < 2:
        for part in parts:
            if part.index in absent:
                with same_bits(THREADS):
                    _write(setup, encoder, part)
            yield from _members(setup, part)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
        try:
            waiting = deque(part for part in parts if part.index in absent)
            running: dict[Future[None], int] = {}
            for part in parts:
                while part.index in absent:
                    # No more than are computed at once: what is submitted is waited for after ctrl-C.
                    while waiting and len(running) < workers:
                        following = waiting.popleft()
                        running[pool.submit(_encode_part, setup, following)] = following.index
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        future.result()
                        absent.discard(running.pop(future))
                yield from _members(setup, part)
        except BrokenProcessPool:
            raise DataError(
                f"A process that encodes ended without a word, out of memory perhaps; the finished parts are kept in "
                f"{Path(setup.folder).parent}. Run it again with --workers 1 or a smaller --batch. (A Python script "
                "that calls encode() with several workers needs `if __name__ == '__main__':` around it.)"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # what a process has begun is finished and kept


def _members(setup: _Setup, part: _Part) -> Iterator[ClassImages]:
    features = _read(setup, part)
    if features is None:
        raise DataError(f"{setup.path(part)} was damaged or removed while it was needed. Run the same command again.")
    ends = np.cumsum([member.rows for member in part.members])
    for member, rows in zip(part.members, np.split(features, ends[:-1]), strict=True):
        yield ClassImages(member.split, member.name, rows)


def _begin() -> None:
    """Start of a process: ctrl-C is the parent's business, and it does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, name="distmeta-parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_part(setup: _Setup, part: _Part) -> None:
    with same_bits(THREADS):
        _write(setup, _encoder(setup.encoder, setup.device, setup.weights_sha256), part)


@lru_cache(maxsize=1)
def _encoder(encoder: str, device: str, weights_sha256: str) -> FrozenEncoder:
    """The encoder of this process."""
    loaded = FrozenEncoder.load(encoder, device)
    if loaded.weights_sha256 != weights_sha256:
        raise ModelContractError(
            f"{loaded.name} has other weights in each process (sha256 {loaded.weights_sha256[:12]}..., expected "
            f"{weights_sha256[:12]}...): the function draws them by numbers of its own. Load fixed weights, or seed it."
        )
    return loaded


def _write(setup: _Setup, encoder: FrozenEncoder, part: _Part) -> None:
    """Compute and keep one part; batches begin anew with every class."""
    found = []
    for member in part.members:
        of = setup.source.split(member.split)
        for start in range(0, member.rows, setup.batch_size):
            rows = np.arange(start, min(start + setup.batch_size, member.rows))
            features = encoder.features(of.gather(np.full(len(rows), member.position), rows))
            if features.shape[1] != setup.features:
                raise ModelContractError(
                    f"{encoder.name} returned {features.shape[1]} features for class {member.name!r} and "
                    f"{setup.features} for the first one; expected one number. Do not let it depend on the picture."
                )
            found.append(features)
    content = np.concatenate(found).astype("<f4").tobytes()
    try:
        write_whole(setup.path(part), hashlib.sha256(content).digest() + content)
    except OSError as error:
        raise DataError(
            f"cannot write {setup.path(part)}: {error}. Make room and run the same command again; finished parts are "
            "kept."
        ) from None


def _read(setup: _Setup, part: _Part) -> npt.NDArray[np.float32] | None:
    """Features ``[rows, D]`` of a part; ``None`` where it is absent or not as it was written."""
    try:
        content = setup.path(part).read_bytes()
    except OSError:
        return None
    seal, features = content[:32], content[32:]
    if len(features) != 4 * part.rows * setup.features or hashlib.sha256(features).digest() != seal:
        return None
    return np.frombuffer(features, "<f4").reshape(part.rows, setup.features).astype(np.float32)


def _overlap(source: ShardDataset, path: Path) -> dict[str, Any]:
    """Which meta_test classes are among the encoder's own, as ``provenance`` has it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--encoder-classes {path} cannot be read: {error}. Give a text file, one class per line."
        ) from None
    lines = [line for line in text.splitlines() if line.strip()]
    known = {_plain(name) for line in lines for name in (line, *re.sub(r"^n\d{8}\s+", "", line).split(","))}
    test = source.manifest.splits.get("meta_test")
    names = [entry.name for entry in test.classes] if test else []
    seen = [name for name in names if {_plain(name), _plain(name.rpartition("/")[2])} & (known - {""})]
    return {"file": path.name, "classes": len(lines), "in_meta_test": seen, "meta_test": len(names)}


def _plain(name: str) -> str:
    """A class name without case, spaces and punctuation: ``Tree_Frog`` is ``tree frog``."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _absolute(encoder: str) -> str:
    """``FILE:FUNCTION`` that means the same in another process."""
    file, _, function = encoder.rpartition(":")
    return f"{Path(file).absolute()}:{function}"


def _without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}
