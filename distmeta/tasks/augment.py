"""Small affine distortions of images, as Koch, Zemel, Salakhutdinov (2015), section 3.3, make more training pairs.

An image is turned by at most 10 degrees, sheared by at most 0.3, scaled by 0.8 to 1.2 and shifted by at most 2 pixels
of 105 (in proportion, for other sizes); each of the seven components is there with probability 1/2.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

Distortion = Literal["none", "small", "affine"]

ROTATION = math.radians(10)
SHEAR = 0.3
SCALE = 0.2
SHIFT = 2 * 2 / 105
"""Of an image whose sides are at -1 and 1."""

PROBABILITY = 0.5


def distort(images: torch.Tensor, kind: Distortion, random: np.random.Generator) -> torch.Tensor:
    """Each image with a distortion of its own.

    Args:
        images: ``[n, C, H, W]`` floats. Empty ground must be 0, as in ink on empty ground: it is what comes in from
            outside.
        kind: ``"affine"`` as in the paper, ``"small"`` turns and shifts only, ``"none"`` does nothing.
        random: every random number comes from it.

    Returns:
        ``[n, C, H, W]``, within the range of ``images`` and 0; bilinear.

    Example:
        >>> x = torch.rand(3, 1, 28, 28)
        >>> torch.equal(distort(x, "none", np.random.default_rng(0)), x)
        True
    """
    if kind == "none":
        return images
    amount = random.uniform(-1, 1, (len(images), 7)) * (random.random((len(images), 7)) < PROBABILITY)
    if kind == "small":
        amount[:, 1:5] = 0
    moved = torch.from_numpy(amount.any(axis=1))  # an image without any stays as it is, to the last bit
    if not bool(moved.any()):
        return images
    found = images.clone()
    grid = F.affine_grid(_output_to_input(amount[moved.numpy()]).to(images), list(images[moved].shape), False)
    found[moved] = F.grid_sample(images[moved], grid, align_corners=False)
    return found


def _output_to_input(amount: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> torch.Tensor:
    """``[n, 2, 3]``: where each place of the distorted image comes from, from amounts ``[n, 7]`` in -1 to 1."""
    turn = ROTATION * amount[:, 0]
    shear_x, shear_y = SHEAR * amount[:, 1], SHEAR * amount[:, 2]
    scale_x, scale_y = 1 + SCALE * amount[:, 3], 1 + SCALE * amount[:, 4]
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    stretch = np.array([[scale_x, shear_x], [shear_y, scale_y]])
    forward = np.einsum("ijn,jkn->nik", rotation, stretch)
    inverse = np.linalg.inv(forward)
    shift = -inverse @ (SHIFT * amount[:, 5:, None])
    return torch.from_numpy(np.concatenate([inverse, shift], axis=2))
