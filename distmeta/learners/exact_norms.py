"""Norm layers whose double backward is exact under ``vmap``.

torch's own batch, instance and layer norms have a batching rule for ``vmap`` that gives a slightly wrong second-order
gradient when autograd runs through the vectorised function (0.03 to 3 % of its norm, no warning). The same norms from
primitive operations have exact derivatives at the same speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class Replacing(TorchFunctionMode):
    """Call :attr:`replacements` in place of torch's functions while active."""

    replacements: ClassVar[Mapping[Callable[..., Any], Callable[..., Any]]]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.replacements.get(func, func)(*args, **(kwargs or {}))


def _normalise(
    x: torch.Tensor,
    dims: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    shape: Sequence[int],
    eps: float,
) -> torch.Tensor:
    if x.dtype == torch.bfloat16:  # a variance needs more digits
        return _normalise(x.float(), dims, weight, bias, shape, eps).to(x.dtype)
    # Not torch.var_mean: it is several times slower on the CPU, and the centred values are needed anyway.
    centred = x - x.mean(tuple(dims), keepdim=True)
    variance = (centred * centred).mean(tuple(dims), keepdim=True)
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight.reshape(tuple(shape))
    y = centred * scale
    return y if bias is None else y + bias.reshape(tuple(shape))


def _channels(x: torch.Tensor) -> list[int]:
    return [1, -1] + [1] * (x.dim() - 2)


Normalise = Callable[
    [torch.Tensor, Sequence[int], torch.Tensor | None, torch.Tensor | None, Sequence[int], float], torch.Tensor
]
"""``(x, dims, weight, bias, shape, eps)``: x with mean 0 and variance 1 over dims, times weight, plus bias, both of
which are reshaped to ``shape``, that of x or one that broadcasts against it."""


def norms_from(
    normalise: Normalise, fixed: Callable[..., torch.Tensor] = F.batch_norm
) -> dict[Callable[..., Any], Callable[..., torch.Tensor]]:
    """Replacements of torch's batch, instance and layer norm that compute statistics by ``normalise``.

    Args:
        normalise: the norm.
        fixed: batch norm by statistics that are given, an affine map, with the arguments of ``F.batch_norm``.
    """

    def batch_norm(
        input: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        if not training:  # exact as it is
            return fixed(input, running_mean, running_var, weight, bias, training, momentum, eps)
        if input.shape[0] * int(np.prod(input.shape[2:], dtype=np.int64)) == 1:
            raise ValueError(
                f"Expected more than 1 value per channel for batch statistics, got input {list(input.shape)}"
            )
        dims = [d for d in range(input.dim()) if d != 1]
        return normalise(input, dims, weight, bias, _channels(input), eps)

    def instance_norm(
        input: torch.Tensor,
        running_mean: torch.Tensor | None = None,
        running_var: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        if not use_input_stats:
            return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
        if int(np.prod(input.shape[2:], dtype=np.int64)) == 1:
            raise ValueError(
                f"Expected more than 1 spatial element for instance statistics, got input {list(input.shape)}"
            )
        return normalise(input, range(2, input.dim()), weight, bias, _channels(input), eps)

    def layer_norm(
        input: torch.Tensor,
        normalized_shape: Sequence[int],
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        dims = range(input.dim() - len(normalized_shape), input.dim())
        return normalise(input, dims, weight, bias, list(normalized_shape), eps)

    def torch_batch_norm(
        input: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> torch.Tensor:
        return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)

    def torch_instance_norm(
        input: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        use_input_stats: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> torch.Tensor:
        return instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)

    def torch_layer_norm(
        input: torch.Tensor,
        normalized_shape: Sequence[int],
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        eps: float = 1e-5,
        cudnn_enable: bool = True,
    ) -> torch.Tensor:
        return layer_norm(input, normalized_shape, weight, bias, eps)

    return {
        F.batch_norm: batch_norm,
        F.instance_norm: instance_norm,
        F.layer_norm: layer_norm,
        torch.batch_norm: torch_batch_norm,
        torch.instance_norm: torch_instance_norm,
        torch.layer_norm: torch_layer_norm,
    }


EXACT_NORMS = norms_from(_normalise)
"""By function of torch: the replacements of :class:`ExactNorms`."""


class ExactNorms(Replacing):
    """Compute batch, instance and layer norm from primitives while active.

    Example:
        >>> x, norm = torch.rand(4, 3), torch.nn.LayerNorm(3)
        >>> with ExactNorms():
        ...     exact = norm(x)
        >>> torch.allclose(exact, norm(x), atol=1e-6)
        True
    """

    replacements = EXACT_NORMS
