"""Leading axes of tensors under ``vmap``: what the rules of fast kernels share."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_front(x: torch.Tensor, dim: int | None, dims: int) -> torch.Tensor:
    """``x`` with the axis that ``vmap`` maps over first, and ``dims`` axes in all where it has one.

    Axes of size 1 are put behind it, so that tensors with fewer axes of their own broadcast against those with more.

    Args:
        x: any tensor.
        dim: the mapped axis; ``None``: ``x`` is the same for all and is returned as it is.
        dims: axes of the result, no fewer than ``x`` has.

    Example:
        >>> to_front(torch.zeros(5, 3, 7), 1, 4).shape
        torch.Size([3, 1, 5, 7])
    """
    if dim is None:
        return x
    x = x.movedim(dim, 0)
    return x.reshape(x.shape[0], *(1,) * (dims - x.dim()), *x.shape[1:])


def sum_to(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """``x`` summed to ``shape``, the adjoint of broadcasting from it.

    Example:
        >>> sum_to(torch.ones(3, 2, 4), (2, 1)).tolist()
        [[12.0], [12.0]]
    """
    if x.shape == tuple(shape):
        return x
    extra = x.dim() - len(shape)
    dims = [*range(extra), *(extra + i for i, size in enumerate(shape) if size == 1 != x.shape[extra + i])]
    return x.sum(dims, keepdim=True).reshape(tuple(shape)) if dims else x
