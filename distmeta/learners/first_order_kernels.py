"""The kernels of engine 2 for learners that differentiate once: torch's own, on images in channels-last memory.

One task after the other: its images stay in the processor's caches from layer to layer, where those of a chunk do not,
and batch statistics are a task's own. Convolution, ReLU and pooling are torch's, whose channels-last kernels for CPUs
are the faster ones (max-pooling ten times). Of batch norm only the statistics are taken otherwise: torch adds the
values of a channel one by one in this layout, with errors of 1e-5 in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from distmeta.learners.exact_norms import Replacing, norms_from

_aten = torch.ops.aten
_CHANNELS_LAST = torch.channels_last
_Tensors = tuple[torch.Tensor, ...]

_FEW = 2048
"""Values of a channel whose plain sum has errors of 1e-6, as those of convolutions are: torch's own norm is cheaper."""


def images(x: torch.Tensor) -> torch.Tensor:
    """``x [N, C, H, W]`` in channels-last memory; of one channel so that torch takes it for that, and goes on in it."""
    if x.shape[1] > 1 or x.requires_grad or not x.numel():
        return x.contiguous(memory_format=_CHANNELS_LAST)
    x = x.contiguous()
    return x.as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))


def statistics(x: torch.Tensor) -> _Tensors:
    """Means and variances ``[C]`` of ``x [N, C, H, W]`` in channels-last memory.

    Torch's kernel, for each column of the images apart: its sums have W times fewer terms, and cost the same.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(2, 1, 1, 2)
        >>> [v.item() for v in statistics(x)]
        [3.0, 3.5]
    """
    n, channels, height, width = x.shape
    columns = x.permute(0, 2, 3, 1).reshape(n, height, 1, width * channels).permute(0, 3, 1, 2)
    means, variances = (v.view(width, channels) for v in _aten.batch_norm_update_stats(columns, None, None, 0.0))
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


class _BatchNorm(Function):
    """y of x, gamma and beta by the statistics of the batch; no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, eps: float) -> torch.Tensor:
        mean, variance = statistics(x)
        y: torch.Tensor = _aten.native_batch_norm(x, gamma, beta, mean, variance, False, 0.0, eps)[0]
        ctx.save_for_backward(x, gamma, mean, torch.rsqrt(variance + eps))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gamma, mean, r = ctx.saved_tensors
        dx, dgamma, dbeta = _aten.native_batch_norm_backward(
            g.contiguous(memory_format=_CHANNELS_LAST), x, gamma, None, None, mean, r, True, 0.0, [True, True, True]
        )
        return dx, dgamma, dbeta, None


def _normalise(
    x: torch.Tensor,
    dims: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    shape: Sequence[int],
    eps: float,
) -> torch.Tensor:
    """Batch norm of any input, by torch's own where that is exact enough or the kernels do not take the input."""
    one_type = all(v is None or v.dtype == x.dtype for v in (weight, bias))
    if x.dim() != 4 or not x.is_cpu or not one_type or x.dtype not in (torch.float32, torch.float64):
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    x = x.contiguous(memory_format=_CHANNELS_LAST)
    if x[:, 0].numel() <= _FEW:
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    gamma = x.new_ones(x.shape[1]) if weight is None else weight
    beta = x.new_zeros(x.shape[1]) if bias is None else bias
    y: torch.Tensor = _BatchNorm.apply(x, gamma, beta, eps)  # type: ignore[no-untyped-call]
    return y


_NORMS = norms_from(_normalise)


def _conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> torch.Tensor:
    if input.dim() == 4 and weight.dim() == 4:
        input, weight = images(input), weight.contiguous(memory_format=_CHANNELS_LAST)
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


class FirstOrderKernels(Replacing):
    """Compute 2-d convolutions and batch norms in channels-last memory while active, in a plain loop over tasks.

    A second derivative of a batch norm raises.

    Example:
        >>> x, norm = torch.rand(4, 3, 2, 2), torch.nn.BatchNorm2d(3, track_running_stats=False)
        >>> with FirstOrderKernels():
        ...     fast = norm(x)
        >>> torch.allclose(fast, norm(x), atol=1e-6)
        True
    """

    replacements = {
        F.batch_norm: _NORMS[F.batch_norm],
        torch.batch_norm: _NORMS[torch.batch_norm],
        F.conv2d: _conv2d,
    }
