"""The kernels of engine 2: norms and convolutions by functions with hand-written derivatives, as a mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from distmeta.learners.exact_norms import EXACT_NORMS, Replacing, norms_from
from distmeta.learners.fast_batch_norm import batch_norm
from distmeta.learners.fast_conv import Geometry, conv2d
from distmeta.learners.fast_norms import standardise
from distmeta.learners.one_level import per_channel


def _normalise(
    x: torch.Tensor,
    dims: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    shape: Sequence[int],
    eps: float,
) -> torch.Tensor:
    # Statistics and their derivatives need more digits; the next convolution casts the result again.
    x = x.float() if x.dtype == torch.bfloat16 else x
    of_images = x.dim() == 4 and tuple(dims) == (0, 2, 3)
    if (
        of_images
        and x.is_cpu
        and all(v is None or (v.dtype in _FUSED and v.dtype == x.dtype) for v in (x, weight, bias))
    ):
        return batch_norm(x, weight, bias, eps)
    return standardise(x, dims, weight, bias, shape, eps)


def _fixed_batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    if input.dim() != 4 or running_mean is None or running_var is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    # In one pass, in the memory layout of the input: the rule that vmap has for torch's own would copy it.
    return torch.addcmul(shift[:, None, None], input, scale[:, None, None])


def _group_norm(input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    # torch's own has no batching rule for other memory layouts, such as that of convolutions here.
    return F.group_norm(input.contiguous(), *args, **kwargs)


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


_FUSED = (torch.float32, torch.float64)  # what torch's kernels take with weights of the same type


class FastKernels(Replacing):
    """Compute 2-d convolutions, batch and instance norm and pooling by fast functions while active.

    Derivatives are exact, in plain loops and under ``torch.func.vmap`` with autograd outside. Layer norm is that of
    :mod:`~distmeta.learners.exact_norms`, and group norm torch's own, whose derivatives are exact: both are faster.

    Example:
        >>> x, norm = torch.rand(4, 3), torch.nn.LayerNorm(3)
        >>> with FastKernels():
        ...     fast = norm(x)
        >>> torch.allclose(fast, norm(x), atol=1e-6)
        True
    """

    replacements = {
        **norms_from(_normalise, _fixed_batch_norm),
        F.layer_norm: EXACT_NORMS[F.layer_norm],
        torch.layer_norm: EXACT_NORMS[torch.layer_norm],
        F.group_norm: _group_norm,
        torch.group_norm: _group_norm,
        F.conv2d: _conv2d,
        F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
        F.max_pool2d: per_channel(F.max_pool2d),
        torch.max_pool2d: per_channel(torch.max_pool2d),
        F.avg_pool2d: per_channel(F.avg_pool2d),
    }
