"""Models as pure functions of their parameters, flat parameter vectors, and norm layers whose double backward is exact.

torch's own batch, instance and layer norms have a batching rule for ``vmap`` that gives a slightly wrong second-order
gradient when autograd runs through the vectorised function (0.03 to 3 % of its norm, no warning). :class:`ExactNorms`
computes the same norms from primitive operations, whose derivatives are exact at the same speed.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from distmeta.errors import ModelContractError
from distmeta.types import FloatArray, Params

_VECTORISED: ContextVar[bool] = ContextVar("distmeta_vectorised", default=False)


def trainable(model: nn.Module) -> Params:
    """Copies of the parameters with ``requires_grad``, in the model's order.

    Raises:
        ModelContractError: a lazy layer has no parameters yet.
    """
    lazy = [name for name, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise ModelContractError(
            f"{', '.join(lazy)}: the layer is lazy and has no shape yet; expected a built model. Call the model once "
            "on a batch, or build it from a factory that reads spec.input_shape."
        )
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def frozen_digest(model: nn.Module) -> str | None:
    """sha256 over the parameters that are not trained and the buffers; ``None`` where there are none.

    Example:
        >>> frozen_digest(nn.Linear(2, 1)) is None
        True
    """
    fixed = {name: p for name, p in model.named_parameters() if not p.requires_grad} | dict(model.named_buffers())
    if not fixed:
        return None
    digest = hashlib.sha256()
    for name, value in fixed.items():
        digest.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def vectorised(active: bool) -> Iterator[None]:
    """Marks that the code inside runs under ``torch.func.vmap`` (or, with ``False``, in a plain loop over tasks).

    Attention is computed from matrix products: torch's fused kernels have no second derivative and no batching rule.
    """
    token = _VECTORISED.set(active)
    try:
        with sdpa_kernel(SDPBackend.MATH), ExactNorms() if active else contextlib.nullcontext():
            yield
    finally:
        _VECTORISED.reset(token)


def has_fused_rnn(model: nn.Module) -> bool:
    """Whether the model has a layer that a GPU computes by cuDNN's recurrent kernels."""
    return any(isinstance(layer, nn.RNNBase) for layer in model.modules())


def differentiable_twice(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """What a forward pass of ``model`` needs for second derivatives, and for first ones in evaluation.

    cuDNN's recurrent kernels have no second derivative, and no first one after ``eval()``: layers such as ``nn.LSTM``
    are computed by torch's own, slower. Other models are left as they are.
    """
    if not has_fused_rnn(model):
        return contextlib.nullcontext()
    cudnn = torch.backends.cudnn
    # Only the switch; the other flags stay as the worker set them.
    return cudnn.flags(
        enabled=False,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=cudnn.allow_tf32,
    )


def task_gradient(
    loss: Callable[[Params], torch.Tensor], params: Params, *, create_graph: bool = True
) -> tuple[Params, torch.Tensor]:
    """Gradient of one task's loss, differentiable again unless ``create_graph`` is off or gradients are disabled.

    Works for one task of a ``vmap`` (by ``torch.func.grad``) and in a plain loop (by ``torch.autograd.grad``), so that
    an algorithm is written once.

    Args:
        loss: scalar loss as a function of the parameters.
        params: the point at which to differentiate.
        create_graph: keep the graph, for second-order meta-gradients.

    Returns:
        The gradient by name (zeros for a parameter that the loss does not use) and the loss.
    """
    keep = create_graph and torch.is_grad_enabled()
    if _VECTORISED.get():
        with contextlib.nullcontext() if keep else torch.no_grad():
            gradient, value = torch.func.grad_and_value(loss)(params)
        return gradient, value
    with torch.enable_grad():
        point = {n: p if keep and p.requires_grad else p.detach().requires_grad_() for n, p in params.items()}
        value = loss(point)
        parts: Sequence[torch.Tensor | None] = (None,) * len(point)
        if value.requires_grad:  # not so where the model cuts the graph: zero slope, which the contract reports by name
            parts = torch.autograd.grad(value, list(point.values()), create_graph=keep, allow_unused=True)
    return {
        name: torch.zeros_like(p) if part is None else part
        for (name, p), part in zip(point.items(), parts, strict=True)
    }, value if keep else value.detach()


@dataclass(frozen=True)
class ParamLayout:
    """How named parameters lie in one flat vector ``[P]``: the wire format of parameters and gradients.

    Args:
        names: parameter names, in order.
        shapes: one shape per name.
        dtype: the one floating point type of all of them, ``"float32"`` or ``"float64"``.

    Example:
        >>> layout = ParamLayout.of({"w": torch.ones(2, 2), "b": torch.zeros(1)})
        >>> layout.flatten({"w": torch.ones(2, 2), "b": torch.zeros(1)}).tolist()
        [1.0, 1.0, 1.0, 1.0, 0.0]
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str

    @classmethod
    def of(cls, params: Params) -> ParamLayout:
        """The layout of ``params``.

        Raises:
            ModelContractError: the parameters have several types, or one that is not float32 or float64.
        """
        kinds = {str(p.dtype).removeprefix("torch.") for p in params.values()}
        if not params:
            raise ModelContractError("The model has no parameter with requires_grad; there is nothing to meta-train.")
        if len(kinds) > 1 or not kinds <= {"float32", "float64"}:
            raise ModelContractError(
                f"The model's parameters have the types {', '.join(sorted(kinds))}; expected one of float32 or float64 "
                "for all. Call model.float() first."
            )
        return cls(tuple(params), tuple(tuple(p.shape) for p in params.values()), kinds.pop())

    @property
    def size(self) -> int:
        """P, the number of scalars."""
        return sum(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch type of the vector."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def flatten(self, params: Params) -> FloatArray:
        """``params`` as one contiguous vector ``[P]`` on the CPU."""
        flat = torch.cat([params[name].detach().reshape(-1) for name in self.names])
        array: FloatArray = flat.cpu().numpy()
        return array

    def unflatten(self, vector: FloatArray, device: torch.device | str = "cpu") -> Params:
        """Named tensors on ``device``, a copy of ``vector`` (which may be read-only shared memory)."""
        flat = torch.from_numpy(np.array(vector, copy=True)).to(device)
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]
        parts = zip(self.names, torch.split(flat, sizes), self.shapes, strict=True)
        return {name: part.reshape(shape) for name, part, shape in parts}

    def sha256(self, vector: FloatArray) -> str:
        """Digest of a vector in this layout: names, shapes and little-endian bytes, in order of name."""
        params = self.unflatten(vector)
        digest = hashlib.sha256()
        for name in sorted(self.names):
            array = params[name].numpy()
            digest.update(f"{name}{array.shape}{self.dtype}".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()


class ExactNorms(TorchFunctionMode):
    """Computes batch, instance and layer norm from primitives while active (see the head of this file).

    Example:
        >>> x, norm = torch.rand(4, 3), nn.LayerNorm(3)
        >>> with ExactNorms():
        ...     exact = norm(x)
        >>> torch.allclose(exact, norm(x), atol=1e-6)
        True
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        replacement = _REPLACEMENTS.get(func)
        if replacement is None:
            return func(*args, **(kwargs or {}))
        return replacement(*args, **(kwargs or {}))


def _normalise(
    x: torch.Tensor,
    dims: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    shape: Sequence[int],
    eps: float,
) -> torch.Tensor:
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


def _batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    if not training:  # fixed statistics: an affine map, exact as it is
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if input.shape[0] * int(np.prod(input.shape[2:], dtype=np.int64)) == 1:
        raise ValueError(f"Expected more than 1 value per channel for batch statistics, got input {list(input.shape)}")
    dims = [d for d in range(input.dim()) if d != 1]
    return _normalise(input, dims, weight, bias, _channels(input), eps)


def _instance_norm(
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
        raise ValueError(f"Expected more than 1 spatial element for instance statistics, got input {list(input.shape)}")
    return _normalise(input, range(2, input.dim()), weight, bias, _channels(input), eps)


def _layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    dims = range(input.dim() - len(normalized_shape), input.dim())
    return _normalise(input, dims, weight, bias, list(normalized_shape), eps)


def _torch_batch_norm(
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
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _torch_instance_norm(
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
    return _instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _torch_layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    return _layer_norm(input, normalized_shape, weight, bias, eps)


_REPLACEMENTS: dict[Callable[..., Any], Callable[..., torch.Tensor]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    torch.batch_norm: _torch_batch_norm,
    torch.instance_norm: _torch_instance_norm,
    torch.layer_norm: _torch_layer_norm,
}
