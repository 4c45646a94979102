"""The kernels of engine 2: norms and convolutions by functions with hand-written derivatives, as a mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from distmeta.learners.exact_norms import norms_from
from distmeta.learners.fast_conv import Geometry, conv2d
from distmeta.learners.fast_norms import standardise
from distmeta.learners.one_level import per_channel


class fast_kernels(TorchFunctionMode):
    """Compute batch, instance, layer and group norm, and 2-d convolutions, by fast functions while active.

    Derivatives are exact, in plain loops and under ``torch.func.vmap`` with autograd outside. Not every
    network is faster: group norm over few channels each is slower than by torch's own kernels.

    Example:
        >>> x, norm = torch.rand(4, 3), torch.nn.LayerNorm(3)
        >>> with fast_kernels():
        ...     fast = norm(x)
        >>> torch.allclose(fast, norm(x), atol=1e-6)
        True
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))


def _group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> torch.Tensor:
    batch, channels, *space = input.shape
    if channels % num_groups or batch * (channels // num_groups) * math.prod(space) == 1:
        return F.group_norm(input, num_groups, weight, bias, eps)  # refuses them in its own words
    inside = channels // num_groups
    groups = input.reshape(batch, num_groups, inside, *space)
    shape = (1, num_groups, inside, *(1 for _ in space))
    return standardise(groups, range(2, groups.dim()), weight, bias, shape, eps).reshape(input.shape)


def _conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> torch.Tensor:
    steps, holes = _pair(stride), _pair(dilation)
    reach = [d * (k - 1) for d, k in zip(holes, weight.shape[2:], strict=False)]
    if padding == "same" and steps == (1, 1) and not any(r % 2 for r in reach):
        padding = [r // 2 for r in reach]
    elif padding == "valid":
        padding = 0
    rim = None if isinstance(padding, str) else _pair(padding)
    if (
        rim is None
        or min(*rim, *(n - 1 for n in steps + holes)) < 0
        or input.dim() != 4
        or weight.dim() != 4
        or input.shape[1] != weight.shape[1] * groups
        or weight.shape[0] % groups
        or not input.numel()
        or any(side + 2 * p <= r for side, p, r in zip(input.shape[2:], rim, reach, strict=True))
    ):  # few or none; torch also refuses what it cannot take in its own words
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return conv2d(input, weight, bias, Geometry(steps, rim, holes, groups))


def _adaptive_avg_pool2d(input: torch.Tensor, output_size: int | Sequence[int | None] | None) -> torch.Tensor:
    sizes = [output_size] if isinstance(output_size, int) or output_size is None else list(output_size)
    if any(size != 1 for size in sizes):
        return F.adaptive_avg_pool2d(input, output_size)  # type: ignore[arg-type]
    # As torch does, which then sets strides that vmap has no rule for.
    return input.mean((-2, -1), keepdim=True)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))
    return pair[0], pair[1]


_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    **norms_from(standardise),
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.conv2d: _conv2d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.max_pool2d: per_channel(F.max_pool2d),
    torch.max_pool2d: per_channel(torch.max_pool2d),
    F.avg_pool2d: per_channel(F.avg_pool2d),
}
