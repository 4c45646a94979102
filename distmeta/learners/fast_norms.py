"""Batch, instance, layer and group norm as functions with closed first and second derivatives.

Per cell of statistics (a channel of a batch norm, a row of a layer norm, ...) with R values ``x``::

    xh = (x - mean x) r,  r = 1 / sqrt(var x + eps),  y = gamma xh + beta,  s = gamma r
    P(v) = v - mean v - xh mean(v xh)

    backward          dx = s P(g),  dgamma = K = sum g xh,  dbeta = S = sum g
    and its own, for cotangents u, p, q of dx, dgamma, dbeta, with M = sum u xh and A = sum u P(g):
      for g           s P(u) + p xh + q
      for gamma       r A
      for x           r P(e) - gamma A r^2 xh / R,   e = p g - (s / R) (K u + M g)

P(e) is linear in u, g and xh: five sums and two passes are enough, where autograd through primitives makes several
times as many. Tensors keep their memory layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function

from distmeta.learners.batched_axes import sum_to, to_front
from distmeta.learners.one_level import call

_Tensors = tuple[torch.Tensor, ...]


def standardise(
    x: torch.Tensor,
    dims: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    shape: Sequence[int],
    eps: float,
) -> torch.Tensor:
    """``x`` with mean 0 and variance 1 over ``dims``, times ``weight``, plus ``bias``.

    Second derivatives are exact in plain loops and when autograd runs through ``torch.func.vmap``.

    Args:
        x: any shape.
        dims: axes of the statistics.
        weight: reshaped to ``shape``; ``None`` for 1.
        bias: reshaped to ``shape``; ``None`` for 0.
        shape: broadcasts against ``x``.
        eps: added to the variance.

    Example:
        >>> standardise(torch.tensor([[1.0, 3.0]]), [1], None, torch.ones(2), [2], 0.0).tolist()
        [[0.0, 2.0]]
    """
    reduced = tuple(d % x.dim() - x.dim() for d in dims)
    padded = (*(1,) * (x.dim() - len(shape)), *(x.shape[1] if n == -1 else n for n in shape))
    if any(padded[d] != 1 for d in reduced):  # the weight varies within a cell of statistics
        y: torch.Tensor = call(_Standardise, x, None, None, reduced, eps)[0]
        y = y if weight is None else y * weight.reshape(padded)
        return y if bias is None else y + bias.reshape(padded)
    if weight is None and bias is None:
        y = call(_Standardise, x, None, None, reduced, eps)[0]
        return y
    # Both or none: a fixed one costs a sum per cell.
    gamma = x.new_ones(padded) if weight is None else weight.reshape(padded)
    beta = x.new_zeros(padded) if bias is None else bias.reshape(padded)
    y = call(_Standardise, x, gamma, beta, reduced, eps)[0]
    return y


def _cells(x: torch.Tensor, dims: tuple[int, ...], eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """xh and r."""
    centred = x - x.mean(dims, keepdim=True)
    r = torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
    return centred, r


def _count(x: torch.Tensor, dims: tuple[int, ...]) -> int:
    return math.prod(x.shape[d] for d in dims)


def _stacked(info: Any, in_dims: Sequence[int | None], tensors: Sequence[torch.Tensor | None]) -> list[Any]:
    """The tensors with the mapped axis first; the first tensor, x or g, and those as large have it in any case."""
    dims = 1 + max(t.dim() - (d is not None) for t, d in zip(tensors, in_dims, strict=True) if t is not None)
    return [None if t is None else to_front(t, d, dims) for t, d in zip(tensors, in_dims, strict=True)]


class _Standardise(Function):
    """(y, xh, r) of x and, of the shape of r up to broadcasting, gamma and beta; (y, r) without those: y is xh."""

    @staticmethod
    def forward(
        x: torch.Tensor, gamma: torch.Tensor | None, beta: torch.Tensor | None, dims: tuple[int, ...], eps: float
    ) -> _Tensors:
        xh, r = _cells(x, dims, eps)
        xh *= r
        return (xh, r) if gamma is None or beta is None else (torch.addcmul(beta, xh, gamma), xh, r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Tensors) -> None:
        x, gamma, beta, ctx.dims, ctx.eps = inputs
        ctx.beta_shape = None if beta is None else beta.shape
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, gamma, *output[-2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        g = cotangents[0]
        x, gamma, xh, r = ctx.saved_tensors
        if g is None:
            return None, None, None, None, None
        dx, k, s = call(_Backward, g, x, gamma, xh, r, ctx.dims, ctx.eps)
        if gamma is None:
            return dx, None, None, None, None
        return dx, sum_to(k, gamma.shape), sum_to(s, ctx.beta_shape), None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: torch.Tensor,
        gamma: torch.Tensor | None,
        beta: torch.Tensor | None,
        dims: tuple[int, ...],
        eps: float,
    ) -> tuple[_Tensors, int]:
        if in_dims[0] is None:
            x, in_dims = x.expand(info.batch_size, *x.shape), (0, *in_dims[1:])
        found: _Tensors = call(_Standardise, *_stacked(info, in_dims[:3], (x, gamma, beta)), dims, eps)
        return found, 0


class _Backward(Function):
    """(dx, dgamma, dbeta), the latter two per cell of statistics."""

    @staticmethod
    def forward(
        g: torch.Tensor,
        x: torch.Tensor,
        gamma: torch.Tensor | None,
        xh: torch.Tensor,
        r: torch.Tensor,
        dims: tuple[int, ...],
        eps: float,
    ) -> _Tensors:
        count = _count(xh, dims)
        k, s = (g * xh).sum(dims, keepdim=True), g.sum(dims, keepdim=True)
        dx = torch.addcmul(g - s / count, xh, k / -count)
        return dx.mul_(r if gamma is None else gamma * r), k, s

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Tensors) -> None:
        *tensors, ctx.dims, ctx.eps = inputs
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, u: torch.Tensor | None, p: torch.Tensor | None, q: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        g, x, gamma, xh, r, k, s = ctx.saved_tensors
        if torch.is_grad_enabled():
            xh, r, k, s = _differentiable(g, x, ctx.dims, ctx.eps)
        found = _second(g, gamma, xh, r, k, s, u, p, q, ctx.dims)
        return *found[:2], None if gamma is None or found[2] is None else sum_to(found[2], gamma.shape), *(None,) * 4

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[_Tensors, int]:
        *tensors, dims, eps = inputs
        size, given = info.batch_size, list(in_dims[:5])
        for i in (0, 1, 3, 4):  # g, x, xh, r: as mapped as each other
            if given[i] is None:
                tensors[i], given[i] = tensors[i].expand(size, *tensors[i].shape), 0
        found: _Tensors = call(_Backward, *_stacked(info, given, tensors), dims, eps)
        return found, 0


def second_derivative(
    g: torch.Tensor,
    x: torch.Tensor,
    u: torch.Tensor | None,
    cells: Sequence[torch.Tensor | None],
    dims: tuple[int, ...],
    eps: float,
) -> tuple[torch.Tensor | None, ...]:
    """The derivatives of ``(dx, dgamma, dbeta)`` for g, x and, per cell of statistics, gamma; names as above.

    Where gradients are enabled they can be differentiated once more.

    Args:
        g: the cotangent of the norm.
        x: its input.
        u: the cotangent of dx.
        cells: gamma, mean, r, K, S, p and q.
        dims: axes of the statistics.
        eps: added to the variance.
    """
    gamma, mean, r, k, s, p, q = cells
    if torch.is_grad_enabled() or mean is None or r is None or k is None or s is None:
        xh, r, k, s = _differentiable(g, x, dims, eps)
    else:
        xh = (x - mean) * r
    return _second(g, gamma, xh, r, k, s, u, p, q, dims)


def _differentiable(g: torch.Tensor, x: torch.Tensor, dims: tuple[int, ...], eps: float) -> _Tensors:
    """xh, r and both sums as functions of x and g."""
    centred, r = _cells(x, dims, eps)
    xh = centred * r
    return xh, r, (g * xh).sum(dims, keepdim=True), g.sum(dims, keepdim=True)


def _second(
    g: torch.Tensor,
    gamma: torch.Tensor | None,
    xh: torch.Tensor,
    r: torch.Tensor,
    k: torch.Tensor,
    s: torch.Tensor,
    u: torch.Tensor | None,
    p: torch.Tensor | None,
    q: torch.Tensor | None,
    dims: tuple[int, ...],
) -> tuple[torch.Tensor | None, ...]:
    count = _count(xh, dims)
    scale = r if gamma is None else gamma * r
    to_g = to_x = None
    if u is None:  # only dgamma and dbeta were used
        if p is not None:
            to_g = p * xh
            to_x = torch.addcmul(g - s / count, xh, k / -count) * (p * r)
        if q is not None:
            to_g = q.expand_as(g) if to_g is None else to_g + q
        return to_g, to_x, None
    su, m, ug = (v.sum(dims, keepdim=True) for v in (u, u * xh, u * g))
    a = ug - (s * su + m * k) / count  # sum u P(g)
    along = -scale * m / count if p is None else p - scale * m / count
    shift = -scale * su / count if q is None else q - scale * su / count
    to_g = torch.addcmul(u * scale, xh, along).add_(shift)
    # e = b u + along g
    b = -scale * k / count
    mean_e, mean_e_xh = (b * su + along * s) / count, (b * m + along * k) / count
    to_x = torch.addcmul(u * (r * b), g, r * along)
    to_x.addcmul_(xh, -(r * mean_e_xh + a * scale * r / count)).sub_(r * mean_e)
    return to_g, to_x, r * a
