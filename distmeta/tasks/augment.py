"""Augmentation: small random turns, shifts and other affine changes of training images.

Two recipes. :func:`augment` is that of Koch, Zemel, Salakhutdinov (2015), section 3.3: a turn of at most 10 degrees, a
shear of at most 0.3, a scale of 0.8 to 1.2 and a shift of at most 2 pixels of 105 (in proportion for other sizes), each
of the seven components present with probability 1/2. :func:`turn_and_shift` is that of Santoro et al. (2016), section
4.1: every image is turned and shifted.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

Augmentation = Literal["none", "small", "affine"]

ROTATION = math.radians(10)
SHEAR = 0.3
SCALE = 0.2
SHIFT = 2 * 2 / 105
"""Largest shift in the coordinates of ``F.affine_grid``, where the sides of an image are at -1 and 1."""

PROBABILITY = 0.5


def augment(images: torch.Tensor, kind: Augmentation, random: np.random.Generator) -> torch.Tensor:
    """Change each image by an affine map of its own.

    Args:
        images: ``[n, C, H, W]`` floats, bright ink on a background of 0: pixels that come in from outside are 0.
        kind: ``"affine"`` for all seven components of the paper, ``"small"`` for turns and shifts only, ``"none"`` to
            return the images as they are.
        random: source of every random number.

    Returns:
        ``[n, C, H, W]``, interpolated bilinearly, within the range of ``images`` and 0.

    Example:
        >>> x = torch.rand(3, 1, 28, 28)
        >>> torch.equal(augment(x, "none", np.random.default_rng(0)), x)
        True
    """
    if kind == "none":
        return images
    amount = random.uniform(-1, 1, (len(images), 7)) * (random.random((len(images), 7)) < PROBABILITY)
    if kind == "small":
        amount[:, 1:5] = 0
    moved = torch.from_numpy(amount.any(axis=1))  # an image without any component keeps its bits
    if not bool(moved.any()):
        return images
    found = images.clone()
    grid = F.affine_grid(_output_to_input(amount[moved.numpy()]).to(images), list(images[moved].shape), False)
    found[moved] = F.grid_sample(images[moved], grid, align_corners=False)
    return found


def turn_and_shift(
    images: torch.Tensor, random: np.random.Generator, *, degrees: float = 10, shift: float = 0.05
) -> torch.Tensor:
    """Turn and shift each image by amounts of its own.

    Args:
        images: ``[n, C, H, H]`` floats; pixels that come in from outside are 0.
        random: source of the amounts, which are uniform between their limits.
        degrees: largest turn, either way.
        shift: largest shift in each direction, as a fraction of the side.

    Returns:
        ``[n, C, H, H]``, interpolated bilinearly.

    Example:
        >>> image = torch.rand(2, 1, 20, 20)
        >>> torch.allclose(turn_and_shift(image, np.random.default_rng(0), degrees=0, shift=0), image, atol=1e-5)
        True
    """
    turn, right, down = torch.from_numpy(random.uniform(-1, 1, (3, len(images), 1, 1))).to(images)
    turn, right, down = turn * np.deg2rad(degrees), right * 2 * shift, down * 2 * shift  # the sides are at -1 and 1
    side = (torch.arange(images.shape[-1]).to(images) * 2 + 1) / images.shape[-1] - 1
    x, y, cos, sin = side, side[:, None], turn.cos(), turn.sin()
    # Source position of each pixel; plain products are several times faster than F.affine_grid.
    grid = torch.stack([cos * x - sin * y + right, sin * x + cos * y + down], -1)
    return F.grid_sample(images, grid, align_corners=False)


def _output_to_input(amount: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> torch.Tensor:
    """Affine maps ``[n, 2, 3]`` from output to source positions, from amounts ``[n, 7]`` in -1 to 1."""
    turn = ROTATION * amount[:, 0]
    shear_x, shear_y = SHEAR * amount[:, 1], SHEAR * amount[:, 2]
    scale_x, scale_y = 1 + SCALE * amount[:, 3], 1 + SCALE * amount[:, 4]
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    stretch = np.array([[scale_x, shear_x], [shear_y, scale_y]])
    forward = np.einsum("ijn,jkn->nik", rotation, stretch)
    inverse = np.linalg.inv(forward)
    shift = -inverse @ (SHIFT * amount[:, 5:, None])
    return torch.from_numpy(np.concatenate([inverse, shift], axis=2))
