"""Batch norm of images, its derivatives by torch's fused kernel for the first one.

That kernel passes over the values twice where primitives pass several times, and gives ``s P(u)``, ``sum u xh`` and
``sum u`` in one call: most of the second derivative too (names as in :mod:`distmeta.learners.fast_norms`; R values a
channel)::

    for g       s P(u) + p xh + q
    for gamma   r A,   A = sum u g - (S sum u + K M) / R
    for x       (p / gamma - r M / R) dx - (r K / R) s P(u) - (gamma r^2 A / R) xh,   dx = s P(g)

The channels of G tasks are those of one call where they lie beside each other in memory, as after the convolutions of
tasks with weights of their own. Otherwise there is a call for each task.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

from distmeta.learners.fast_norms import second_derivative
from distmeta.learners.one_level import call, joined, one_level, parted, transformed

_aten = torch.ops.aten
_Tensors = tuple[torch.Tensor, ...]
_DIMS = (-4, -2, -1)  # of [G, N, C, H, W]: G C cells of statistics


def batch_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Batch norm by the statistics of the batch.

    Args:
        x: ``[N, C, H, W]``, on a CPU.
        weight: ``[C]``; ``None`` for 1.
        bias: ``[C]``; ``None`` for 0.
        eps: added to the variance.

    Example:
        >>> batch_norm(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), None, torch.ones(1), 0.0).flatten().tolist()
        [0.0, 2.0]
    """
    gamma = x.new_ones(x.shape[1]) if weight is None else weight
    beta = x.new_zeros(x.shape[1]) if bias is None else bias
    level = one_level()
    if level is not None and level.is_mapped(x):  # as the rule of vmap below, without its views
        with level.outside():
            found = call(_BatchNorm, *map(level.front, (x, gamma, beta)), eps)[0]
        return level.mapped(found)
    y: torch.Tensor = call(_BatchNorm, x[None], gamma[None], beta[None], eps)[0]
    return y.squeeze(0)


# -- kernels: x, g [G, N, C, H, W]; weights, means and sums [G, C]


def _task_by_task(x: torch.Tensor) -> bool:
    return len(x) > 1 and x.stride(0) > x.stride(1)


def _forward(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, eps: float) -> _Tensors:
    """(y, mean, r)."""
    # Not torch's fused norm, which adds the values of a channel one by one: in float32 its statistics have 1e-5 errors,
    # where these have 1e-7. Sums of gradients have no mean that would make them so large.
    mean = x.mean(_DIMS, keepdim=True)
    centred = x - mean
    r = torch.rsqrt((centred * centred).mean(_DIMS, keepdim=True).add_(eps))
    y = torch.addcmul(_cells(beta), centred, _cells(gamma) * r)
    return y, mean[:, 0, :, 0, 0], r[:, 0, :, 0, 0]


def _adjoint(g: torch.Tensor, x: torch.Tensor, gamma: torch.Tensor, mean: torch.Tensor, r: torch.Tensor) -> _Tensors:
    """(s P(g), sum g xh, sum g)."""
    # eps is in r already.
    if _task_by_task(x):
        dx, k, s = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
        for i in range(len(x)):
            dx[i], k[i], s[i] = _aten.native_batch_norm_backward(
                _packed(g[i]), _packed(x[i]), gamma[i], None, None, mean[i], r[i], True, 0.0, [True, True, True]
            )
        return dx, k, s
    # The kernel reads them as if they lay side by side; of one channel that tasks share, they are one number, expanded.
    flat = [v.reshape(-1).contiguous() for v in (gamma, mean, r)]
    dx, k, s = _aten.native_batch_norm_backward(
        joined(g), joined(x), flat[0], None, None, *flat[1:], True, 0.0, [True, True, True]
    )
    return parted(dx, len(x)), k.view(len(x), -1), s.view(len(x), -1)


def _packed(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _cells(values: torch.Tensor) -> torch.Tensor:
    """``[G, C]`` so that they broadcast over ``[G, N, C, H, W]``."""
    return values[:, None, :, None, None]


class _BatchNorm(Function):
    """(y, mean, r) of x, gamma and beta."""

    @staticmethod
    def forward(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, eps: float) -> _Tensors:
        y, mean, r = _forward(x, gamma, beta, eps)
        return y.data, mean, r  # no view of another tensor: models may change it in place

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Tensors) -> None:
        x, gamma, _, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, gamma, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if cotangents[0] is None:
            return None, None, None, None
        return *call(_Adjoint, cotangents[0], *ctx.saved_tensors, ctx.eps), None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: torch.Tensor,
        gamma: torch.Tensor,
        beta: torch.Tensor,
        eps: float,
    ) -> tuple[_Tensors, int]:
        x, gamma, beta = (_mapped(v, d, info.batch_size) for v, d in zip((x, gamma, beta), in_dims, strict=False))
        found = call(_BatchNorm, x.flatten(0, 1), _folded(gamma), _folded(beta), eps)
        return tuple(v.unflatten(0, (info.batch_size, -1)) for v in found), 0


class _Adjoint(Function):
    """(dx, dgamma, dbeta)."""

    @staticmethod
    def forward(
        g: torch.Tensor, x: torch.Tensor, gamma: torch.Tensor, mean: torch.Tensor, r: torch.Tensor, eps: float
    ) -> _Tensors:
        return _adjoint(g, x, gamma, mean, r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Tensors) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, u: torch.Tensor | None, p: torch.Tensor | None, q: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        g, x, gamma, mean, r, dx, k, s = ctx.saved_tensors
        if u is None or torch.is_grad_enabled() or transformed():
            cells = [v if v is None else _cells(v) for v in (gamma, mean, r, k, s, p, q)]
            to_g, to_x, to_gamma = second_derivative(g, x, u, cells, _DIMS, ctx.eps)
            return to_g, to_x, None if to_gamma is None else to_gamma[:, 0, :, 0, 0], None, None, None
        count = x[0, :, 0].numel()
        pu, m, su = _adjoint(u, x, gamma, mean, r)
        a = (u * g).sum(_DIMS) - (s * su + m * k) / count
        p = torch.zeros_like(m) if p is None else p
        along = p - gamma * r * m / count
        if float(gamma.abs().min()) > 1e-12:
            along = along / gamma
        else:  # dx is no measure of P(g) there
            dx = _adjoint(g, x, torch.ones_like(gamma), mean, r)[0]
        shift = -p * r * mean if q is None else q - p * r * mean
        to_g = torch.addcmul(pu + _cells(shift), x, _cells(p * r))
        slope = -gamma * r**3 * a / count  # of x; xh = (x - mean) r
        to_x = torch.addcmul(_cells(-slope * mean), dx, _cells(along))
        to_x.addcmul_(pu, _cells(-r * k / count)).addcmul_(x, _cells(slope))
        return to_g, to_x, r * a, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[_Tensors, int]:
        *tensors, eps = inputs
        g, x, *cells = (_mapped(v, d, info.batch_size) for v, d in zip(tensors, in_dims, strict=False))
        found = call(_Adjoint, g.flatten(0, 1), x.flatten(0, 1), *map(_folded, cells), eps)
        return tuple(v.unflatten(0, (info.batch_size, -1)) for v in found), 0


def _mapped(x: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _folded(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(0, 1)
