"""Augmentation: what it does to an image, and what it leaves."""

import math

import numpy as np
import pytest
import torch

from distmeta import FewShot, from_arrays
from distmeta.errors import ConfigError, TaskContractError
from distmeta.tasks import augment as module
from distmeta.tasks.augment import augment, turn_and_shift
from distmeta.types import TaskRef


class Fixed:
    """A generator whose seven amounts are given: ``amount`` in -1 to 1, all components on."""

    def __init__(self, *amount):
        self.amount = np.array(amount, float)

    def uniform(self, low, high, shape):
        assert (low, high) == (-1, 1)
        return np.tile(self.amount, (shape[0], 1))

    def random(self, shape):
        return np.zeros(shape)


def blob(x, y, size=105):
    """A round spot at pixel (x, y)."""
    i, j = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.exp(-((i - y) ** 2 + (j - x) ** 2) / 20.0)[None, None]


def centre(image):
    plane = image[0, 0].double()
    at = torch.arange(len(plane), dtype=torch.float64)
    return float((plane.sum(0) * at).sum() / plane.sum()), float((plane.sum(1) * at).sum() / plane.sum())


TURN = math.radians(10)


@pytest.mark.parametrize(
    ("amount", "place"),  # where a spot 20 pixels to the right of the middle (52, 52) goes
    [
        ((1, 0, 0, 0, 0, 0, 0), (52 + 20 * math.cos(TURN), 52 + 20 * math.sin(TURN))),
        ((0, 1, 0, 0, 0, 0, 0), (72, 52)),
        ((0, 0, 1, 0, 0, 0, 0), (72, 52 + 20 * 0.3)),
        ((0, 0, 0, 1, 0, 0, 0), (52 + 20 * 1.2, 52)),
        ((0, 0, 0, -1, 0, 0, 0), (52 + 20 * 0.8, 52)),
        ((0, 0, 0, 0, 1, 0, 0), (72, 52)),
        ((0, 0, 0, 0, 0, 1, 0), (74, 52)),
        ((0, 0, 0, 0, 0, 0, -1), (72, 50)),
        ((1, 0, 0, 0, 0, 1, 0), (54 + 20 * math.cos(TURN), 52 + 20 * math.sin(TURN))),
    ],
)
def test_each_component_is_as_large_as_the_paper_says(amount, place):
    assert centre(augment(blob(72, 52), "affine", Fixed(*amount))) == pytest.approx(place, abs=0.15)


def test_small_turns_and_shifts_only():
    x = blob(72, 52)
    everything = augment(x, "small", Fixed(1, 1, 1, 1, 1, 1, 1))
    assert torch.equal(everything, augment(x, "affine", Fixed(1, 0, 0, 0, 0, 1, 1)))


def test_no_component_leaves_the_bits():
    x = torch.rand(4, 1, 28, 28)
    assert augment(x, "none", np.random.default_rng(0)) is x
    assert torch.equal(augment(x, "affine", Fixed(*[0] * 7)), x)
    assert torch.equal(augment(x, "small", Fixed(0, 1, 1, 1, 1, 0, 0)), x)


@pytest.mark.parametrize("kind", ["small", "affine"])
def test_seeded_within_range_and_each_image_its_own(kind):
    x = (torch.rand(1, 3, 28, 20) > 0.5).float().expand(60, -1, -1, -1)
    before = x.clone()
    found, again, other = (augment(x, kind, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert torch.equal(x, before)
    assert torch.equal(found, again)
    assert not torch.equal(found, other)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert len({image.numpy().tobytes() for image in found}) > 30
    if kind == "small":  # three components off: one in eight
        still = sum(torch.equal(a, b) for a, b in zip(found, x, strict=True))
        assert 1 <= still <= 20


def test_empty_ground_stays_empty():
    x = torch.zeros(50, 1, 28, 28)
    assert not augment(x, "affine", np.random.default_rng(0)).any()
    x[:, :, 14, 14] = 1
    corners = augment(x, "affine", np.random.default_rng(0))[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert not corners.any()


class Extreme:
    """A generator whose three amounts (turn, right, down) are given, in -1 to 1."""

    def __init__(self, *amount):
        self.amount = np.array(amount, float)

    def uniform(self, low, high, shape):
        assert (low, high) == (-1, 1)
        return np.broadcast_to(self.amount[:, None, None, None], shape).copy()


@pytest.mark.parametrize(
    ("amount", "place"),  # where a spot 20 pixels to the right of the middle (52, 52) goes
    [
        ((1, 0, 0), (52 + 20 * math.cos(TURN), 52 - 20 * math.sin(TURN))),
        ((-1, 0, 0), (52 + 20 * math.cos(TURN), 52 + 20 * math.sin(TURN))),
        ((0, 1, 0), (72 - 5.25, 52)),
        ((0, 0, -1), (72, 52 + 5.25)),
    ],
)
def test_every_image_is_turned_and_shifted_within_the_limits(amount, place):
    assert centre(turn_and_shift(blob(72, 52), Extreme(*amount))) == pytest.approx(place, abs=0.15)


def test_turns_and_shifts_are_seeded_and_each_image_has_its_own():
    x = torch.rand(1, 1, 20, 20).expand(30, -1, -1, -1)
    found, again, other = (turn_and_shift(x, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(found, again)
    assert not torch.equal(found, other)
    assert len({image.numpy().tobytes() for image in found}) == 30


# -- in tasks ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Classes in groups a (6 classes), b (3) and, for validation and test, c and d (4 each)."""
    out = tmp_path_factory.mktemp("drawn") / "data"
    names = [f"{group}/{i}" for group, n in (("a", 6), ("b", 3), ("c", 4), ("d", 4)) for i in range(n)]
    random = np.random.default_rng(0)
    x = random.integers(1, 256, (len(names) * 8, 1, 12, 12)).astype(np.uint8)
    x[:, 0, 0, 0] = np.repeat(np.arange(len(names)), 8) + 1
    splits = {"meta_train": range(9), "meta_validation": range(9, 13), "meta_test": range(13, 17)}
    from_arrays(x, np.repeat(np.arange(len(names)), 8), out, splits=splits, class_names=names)
    return out


def test_training_tasks_only_are_augmented(drawn):
    plain, bent = (FewShot(drawn, ways=3, queries=2, augment=kind) for kind in ("none", "affine"))
    for split in plain.splits:
        a, b = (tasks.episode(TaskRef(split, 5, 1), seed=1) for tasks in (plain, bent))
        assert torch.equal(a.support_x, b.support_x) == (split != "meta_train")
        assert torch.equal(a.query_y, b.query_y)
    again = bent.episode(TaskRef("meta_train", 5, 1), seed=1)
    assert torch.equal(again.query_x, bent.episode(TaskRef("meta_train", 5, 1), seed=1).query_x)


def test_what_cannot_be_augmented(tmp_path):
    x, y = np.random.default_rng(0).random((60, 7), np.float32), np.repeat(np.arange(6), 10)
    from_arrays(x, y, tmp_path / "rows", splits="34/33/33")
    with pytest.raises(TaskContractError, match=r"augment='affine' needs images \[C, H, W\].*tasks.augment=none"):
        FewShot(tmp_path / "rows", ways=2, augment="affine").check()
    with pytest.raises(ConfigError, match="augment"):
        FewShot(augment="elastic")
    assert module.PROBABILITY == 0.5
