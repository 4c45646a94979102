"""The numbers that training computes with: float32, TF32 or bfloat16. Parameters, losses and gradients stay float32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F

from distmeta.errors import ConfigError
from distmeta.learners.exact_norms import Replacing

Precision = Literal["float32", "tf32", "bfloat16"]

_PRECISION: ContextVar[Precision] = ContextVar("distmeta_precision", default="float32")


def require_for(precision: Precision, *, gpu: bool) -> None:
    """Raise where training in this precision would be in another one without a word.

    Args:
        precision: see :func:`computing_in`.
        gpu: whether it will be on GPUs.

    Raises:
        ConfigError: TF32 on CPUs.
    """
    if precision == "tf32" and not gpu:
        raise ConfigError(
            "learner.precision=tf32 is of NVIDIA GPUs, and training would be on CPUs; expected float32 or bfloat16. "
            "Set learner.precision=float32, or train where there is a GPU."
        )


@contextlib.contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute what the model does inside, and its derivatives, in this precision.

    Args:
        precision: see ``precision`` of :class:`~distmeta.learners.base.MetaLearner`.
        device: of the parameters. TF32 is of GPUs; a CPU computes in float32 instead, as it does where a model is
            probed before it is sent to a GPU.

    Example:
        >>> with computing_in("bfloat16", torch.device("cpu")), of_model(torch.device("cpu")):
        ...     print((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        torch.bfloat16
    """
    token = _PRECISION.set(precision)
    try:
        with _tf32() if precision == "tf32" and device.type == "cuda" else contextlib.nullcontext():
            yield
    finally:
        _PRECISION.reset(token)


def of_model(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context of a call of the model: torch's rules of what bfloat16 is good for.

    Derivatives follow from what the call recorded, in the same types.
    """
    return _autocast(device) if _PRECISION.get() == "bfloat16" else contextlib.nullcontext()


@contextlib.contextmanager
def _autocast(device: torch.device) -> Iterator[None]:
    # Without the cache of weights: what it keeps would outlive the graph that it belongs to.
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False), _Cast():
        yield


def of_algorithm(output: torch.Tensor) -> torch.Tensor:
    """The output of the model as the algorithm goes on with it: sums over examples and losses need more digits."""
    return output.float() if _PRECISION.get() == "bfloat16" and output.dtype == torch.bfloat16 else output


def _lowered(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def lower(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype not in (torch.float32, torch.bfloat16):
            return value
        return value.bfloat16().float() if value.is_cpu else value.bfloat16()

    def lowered(*args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            found = function(*map(lower, args), **{name: lower(value) for name, value in kwargs.items()})
        return found.bfloat16() if found.dtype == torch.float32 else found

    return lowered


class _Cast(Replacing):
    """Cast what convolutions are given: behind ``torch.func.vmap`` torch's autocast misses them, and only them.

    On a CPU, convolutions and attention are computed in float32 from rounded numbers, and the results rounded. In
    bfloat16 (torch 2.13, a CPU with AMX), oneDNN's convolutions returned wrong numbers, others each time, or ended the
    process for two in a hundred random shapes; and the derivative of attention took twenty times as long.
    """

    replacements: ClassVar = {
        function: _lowered(function)
        for function in (
            F.conv1d,
            F.conv2d,
            F.conv3d,
            F.conv_transpose1d,
            F.conv_transpose2d,
            F.conv_transpose3d,
            F.scaled_dot_product_attention,
        )
    }


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
