"""The networks of the few-shot papers, as factories that build a plain ``nn.Module`` for a task distribution.

Each factory returns a function ``TaskSpec -> nn.Module``, so that one job file serves any number of ways and any image
size. Batch normalisation uses the statistics of the batch and keeps no running averages, as in Finn et al. (2017).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from distmeta.errors import ModelContractError
from distmeta.types import ModelFactory, TaskSpec

Norm = Literal["batch", "group", "layer", "none"]


def conv4(
    width: int = 64, *, pool: Literal["stride", "max"] = "stride", norm: Norm = "batch", head: bool = True
) -> ModelFactory:
    """Four 3x3 convolution blocks and a linear head, the network of the few-shot papers.

    ``pool="stride"`` halves the image by stride-2 convolutions and averages the last map, for ``width`` features at any
    image size (Finn et al. 2017, section 5.2, Omniglot; the averaging is in the authors' code); ``pool="max"``
    halves it by 2x2 max-pooling and flattens the last map (Vinyals et al. 2016; MAML on MiniImagenet).

    Args:
        width: filters per block.
        pool: how a block halves the image.
        norm: the norm layer after each convolution.
        head: a linear layer with one output per class at the end; without it the model is an encoder.

    Returns:
        A factory; the built model maps ``[B, C, H, W]`` to ``[B, outputs]``, or to features ``[B, D]`` without a head.

    Example:
        >>> spec = TaskSpec(input_shape=(1, 28, 28), outputs=5, kind="classification", support=5, queries=5)
        >>> conv4()(spec)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 5])
    """

    def build(spec: TaskSpec) -> nn.Module:
        if len(spec.input_shape) != 3:
            raise ModelContractError(
                f"conv4 takes images [C, H, W]; the tasks have inputs of shape {list(spec.input_shape)}. Use mlp()."
            )
        channels, height, width_px = spec.input_shape
        blocks: list[nn.Module] = []
        for _ in range(4):
            stride = 2 if pool == "stride" else 1
            # Batch normalisation cancels a bias in front of it.
            layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=norm != "batch")]
            layers += [_norm(norm, width), nn.ReLU()]
            if pool == "max":
                layers.append(nn.MaxPool2d(2))
                height, width_px = height // 2, width_px // 2
            blocks.append(nn.Sequential(*layers))
            channels = width
        if not height * width_px:
            raise ModelContractError(
                f"conv4 with pool='max' halves the image four times; {list(spec.input_shape)} is too small. "
                "Use images of at least 16x16, or pool='stride'."
            )
        model = nn.Sequential()
        if pool == "stride":
            blocks.append(nn.AdaptiveAvgPool2d(1))
            height = width_px = 1
        model.add_module("features", nn.Sequential(*blocks, nn.Flatten()))
        if head:
            model.add_module("head", nn.Linear(width * height * width_px, spec.outputs))
        return model

    return build


def koch_cnn() -> ModelFactory:
    """One side of the convolutional Siamese network of Koch, Zemel, Salakhutdinov (2015), figure 4.

    Convolutions 64@10x10, 128@7x7, 128@4x4, 256@4x4 with ReLU, 2x2 max-pooling after the first three, and 4,096
    sigmoid units. Designed for images of 105x105 (38,947,648 parameters; with the 4,096 + 1 of the distance,
    38,951,745); images down to 65x65 work. Weights are initialised by torch's defaults, not from the paper's normal
    distributions.

    Returns:
        A factory; the built model maps ``[B, C, H, W]`` to ``[B, 4096]``.

    Example:
        >>> spec = TaskSpec(input_shape=(1, 65, 65), outputs=20, kind="classification", support=20, queries=20)
        >>> koch_cnn()(spec)(torch.zeros(2, 1, 65, 65)).shape
        torch.Size([2, 4096])
    """

    def build(spec: TaskSpec) -> nn.Module:
        sides = list(spec.input_shape[1:])
        for kernel, pool in ((10, 2), (7, 2), (4, 2), (4, 1)):
            sides = [(side - kernel + 1) // pool for side in sides]
        if len(sides) != 2 or min(sides) < 1:
            raise ModelContractError(
                f"koch_cnn takes images [C, H, W] of at least 65x65, 105x105 in the paper; the tasks have inputs of "
                f"shape {list(spec.input_shape)}. Build the data with --size 105, or use conv4()."
            )
        layers: list[nn.Module] = []
        channels = spec.input_shape[0]
        for width, kernel in ((64, 10), (128, 7), (128, 4)):
            layers += [nn.Conv2d(channels, width, kernel), nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        layers += [nn.Conv2d(channels, 256, 4), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(256 * sides[0] * sides[1], 4096), nn.Sigmoid())

    return build


def mlp(hidden: Sequence[int] = (256, 128, 64, 64), *, norm: Norm = "none", head: bool = True) -> ModelFactory:
    """A multi-layer perceptron with ReLU.

    ``mlp(norm="batch")`` is MAML's non-convolutional Omniglot network, ``mlp((40, 40))`` its sinusoid regressor
    (Finn et al. 2017, sections 5.1 and 5.2).

    Args:
        hidden: units per hidden layer.
        norm: the norm layer after each hidden linear layer.
        head: a linear layer with one output per class or target at the end; without it the model is an encoder.

    Returns:
        A factory; the built model maps ``[B, ...]`` to ``[B, outputs]``, or to features ``[B, D]`` without a head.

    Example:
        >>> spec = TaskSpec(input_shape=(1,), outputs=1, kind="regression", support=10, queries=10)
        >>> mlp((40, 40))(spec)(torch.zeros(3, 1)).shape
        torch.Size([3, 1])
    """

    def build(spec: TaskSpec) -> nn.Module:
        sizes = [int(torch.Size(spec.input_shape).numel()), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs, bias=norm != "batch"), _norm(norm, outputs, flat=True), nn.ReLU()]
        model = nn.Sequential()
        model.add_module("features", nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Identity))))
        if head:
            model.add_module("head", nn.Linear(sizes[-1], spec.outputs))
        return model

    return build


class _Adapter(nn.Module):
    """``s (u + B A u)`` of ``u = x / |x|``, with B 0 at first; s is kept positive by its logarithm."""

    def __init__(self, features: int, rank: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Linear(features, rank, bias=False)
        self.up = nn.Linear(rank, features, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        unit = nn.functional.normalize(x.flatten(1), dim=1)
        adapted: torch.Tensor = self.log_scale.exp() * (unit + self.up(self.down(unit)))
        return adapted


def adapter(rank: int = 64, *, scale: float = 4.0) -> ModelFactory:
    """A small map of the features of a frozen encoder, without effect on their directions before meta-training.

    ``s (u + B A u)``: features are scaled to length 1, ``u = x / |x|``, and changed by a map of low rank that is 0 at
    first (Hu et al. 2022). So ``ProtoNet(adapter())`` starts as the nearest class mean of normalised features. The
    length s is learned too: it is the temperature of a softmax over distances.

    Args:
        rank: r; ``A [r, D]`` and ``B [D, r]``.
        scale: s before meta-training.

    Returns:
        A factory; the built model maps ``[B, ...]`` with D numbers per input to ``[B, D]``.

    Example:
        >>> spec = TaskSpec(input_shape=(2,), outputs=5, kind="classification", support=5, queries=5)
        >>> adapter(rank=1, scale=5.0)(spec)(torch.tensor([[30.0, 40.0]])).round(decimals=4).tolist()
        [[3.0, 4.0]]
    """

    def build(spec: TaskSpec) -> nn.Module:
        return _Adapter(int(torch.Size(spec.input_shape).numel()), rank, scale)

    return build


def _norm(norm: Norm, width: int, *, flat: bool = False) -> nn.Module:
    if norm == "batch":
        kind = nn.BatchNorm1d if flat else nn.BatchNorm2d
        return kind(width, track_running_stats=False)
    if norm == "group":
        return nn.GroupNorm(num_groups=next(g for g in (8, 4, 2, 1) if width % g == 0), num_channels=width)
    if norm == "layer":
        return nn.LayerNorm(width) if flat else nn.GroupNorm(1, width)
    return nn.Identity()
