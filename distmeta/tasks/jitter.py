"""Small random turns and shifts of images (Santoro et al. 2016, section 4.1: more training data by augmentation)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def jitter(
    images: torch.Tensor, random: np.random.Generator, *, degrees: float = 10, shift: float = 0.05
) -> torch.Tensor:
    """Each image turned and shifted by its own amount; what comes in from outside is 0.

    Args:
        images: ``[n, C, H, H]`` floats.
        random: where the amounts come from, evenly between the limits.
        degrees: farthest turn, either way.
        shift: farthest shift, either way and in both directions, as a share of the side.

    Example:
        >>> image = torch.rand(2, 1, 20, 20)
        >>> torch.allclose(jitter(image, np.random.default_rng(0), degrees=0, shift=0), image, atol=1e-5)
        True
    """
    turn, right, down = torch.from_numpy(random.uniform(-1, 1, (3, len(images), 1, 1))).to(images)
    turn, right, down = turn * np.deg2rad(degrees), right * 2 * shift, down * 2 * shift  # the sides are at -1 and 1
    side = (torch.arange(images.shape[-1]).to(images) * 2 + 1) / images.shape[-1] - 1
    x, y, cos, sin = side, side[:, None], turn.cos(), turn.sin()
    # Where each pixel comes from; plain products are several times faster than F.affine_grid.
    grid = torch.stack([cos * x - sin * y + right, sin * x + cos * y + down], -1)
    return F.grid_sample(images, grid, align_corners=False)
