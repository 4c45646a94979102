"""Few-shot images in context: an encoder, a transformer over support and query tokens, and a readout by similarity.

In the place of SNAIL (Mishra et al. 2018) among the few-shot learners: nothing is adapted and no distance is fixed, the
support set is read in one forward pass.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F

from distmeta.errors import ModelContractError
from distmeta.models.set_attention import SetModel, Stack, require_heads, valid_rows
from distmeta.types import ModelFactory, TaskSpec

_ABSENT = -1e9
"""The similarity to a class without support rows."""


def image_context(
    encoder: ModelFactory | None = None,
    *,
    width: int = 128,
    heads: int = 4,
    layers: int = 2,
    hidden: int | None = None,
) -> ModelFactory:
    """A transformer over encoded images and their labels that classifies by similarity to the support set.

    Each image is encoded on its own. Support tokens carry the code of their label; queries attend to them. The
    similarity of a query and a support image is the scaled cosine of their features plus the product of their tokens,
    and a class has the sum of the attention over its support images (Vinyals et al. 2016): any number of ways up to the
    largest of the tasks, and labels renamed rename the predictions but for the transformer's part.

    Args:
        encoder: a factory of the encoder ``[B,C,H,W]`` to ``[B,D]``; by default four blocks of a 3x3 convolution, 64
            filters, 2x2 max-pooling, group norm and ReLU. Batch norm would let images see each other and is refused.
        width: numbers per token.
        heads: attention heads; they divide ``width``.
        layers: transformer blocks.
        hidden: units of the perceptron of a block; twice the width by default.

    Returns:
        A factory; the built model is a set model: ``(support_x [T,S,C,H,W], support_y [T,S], query_x [T,Q,C,H,W])`` to
        logits ``[T,Q,outputs]``.

    Example:
        >>> spec = TaskSpec((1, 28, 28), outputs=5, kind="classification", support=5, queries=15)
        >>> model = image_context(width=8, heads=2)(spec)
        >>> model(torch.randn(2, 5, 1, 28, 28), torch.arange(5).repeat(2, 1), torch.randn(2, 15, 1, 28, 28)).shape
        torch.Size([2, 15, 5])
    """
    require_heads("image_context", width, heads)

    def build(spec: TaskSpec) -> nn.Module:
        if spec.kind != "classification":
            raise ModelContractError(
                f"image_context classifies; the tasks are {spec.kind}. For regression give the model rows: "
                "table_transformer(), tnp() or cnp(), with tasks such as ImageCompletion."
            )
        encode = _Encoder(spec) if encoder is None else encoder(spec)
        return ImageContext(spec, encode, width, heads, layers, 2 * width if hidden is None else hidden)

    return build


class ImageContext(SetModel):
    """The network of :func:`image_context`."""

    def __init__(self, spec: TaskSpec, encoder: nn.Module, width: int, heads: int, layers: int, hidden: int) -> None:
        super().__init__(spec)
        _require_no_batch_norm(encoder)
        with torch.no_grad():
            features = encoder(torch.zeros(1, *spec.input_shape))
        if features.dim() != 2:
            raise ModelContractError(
                f"image_context's encoder gives {list(features.shape)} for one image, expected features [1, D]. End it "
                "with torch.nn.Flatten(), or leave it out for the default."
            )
        self.encoder = encoder
        self.embed = nn.Sequential(nn.LayerNorm(features.shape[1]), nn.Linear(features.shape[1], width, bias=False))
        self.label = nn.Embedding(spec.outputs, width)
        _orthogonal_codes(self.label.weight)
        self.unknown = nn.Parameter(torch.randn(width))
        self.stack = Stack(width, heads, hidden, layers)
        self.support_out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
        self.query_out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def encode_support(self, support_x: torch.Tensor, support_y: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features and last tokens ``[T,S,W]`` of the support images, and keys and values of every block."""
        features, valid = self._features(support_x), valid_rows(support_y)
        tokens, encoded = self.stack.encode(features + self.label(support_y.clamp(min=0)), valid)
        labels = support_y.masked_fill(support_y < 0, 0)
        return encoded | {
            "labels": labels,
            "features": F.normalize(features, dim=2),
            "tokens": self.support_out(tokens),
        }

    def decode_queries(self, encoded: dict[str, torch.Tensor], query_x: torch.Tensor) -> torch.Tensor:
        """Logits ``[T,Q,outputs]`` of queries ``[T,Q,C,H,W]``: the logarithm of the attention over each class."""
        features = self._features(query_x)
        tokens = self.query_out(self.stack.decode(encoded, features + self.unknown))
        similarity = self.log_scale.exp() * (F.normalize(features, dim=2) @ encoded["features"].mT)
        similarity = similarity + tokens @ encoded["tokens"].mT / tokens.shape[2]
        classes = torch.arange(self.label.num_embeddings, device=query_x.device)
        member = (encoded["labels"].unsqueeze(1) == classes[:, None]) & encoded["rows"].unsqueeze(1)  # [T, N, S]
        logits: torch.Tensor = similarity.unsqueeze(2).masked_fill(~member.unsqueeze(1), _ABSENT).logsumexp(3)
        return logits

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.embed(self.encoder(images.flatten(0, 1)))
        return features.view(*images.shape[:2], -1)


class _Encoder(nn.Module):
    """The default encoder: ``[B,C,H,W]`` to ``[B,64 (H/16)(W/16)]``.

    Pooled before it is normalised, a map is a quarter of the size for group norm and ReLU; with the channels last in
    memory, norm and pooling run as fast as the convolutions. Together about twice the images per second of
    :func:`distmeta.conv4` with group norm.
    """

    def __init__(self, spec: TaskSpec, width: int = 64) -> None:
        super().__init__()
        if len(spec.input_shape) != 3 or min(spec.input_shape[1:]) < 16:
            raise ModelContractError(
                f"image_context's encoder takes images [C, H, W] of at least 16x16; the tasks have inputs of shape "
                f"{list(spec.input_shape)}. Give an encoder for them, image_context(mlp(head=False)) say, or use "
                "table_transformer() for rows of features."
            )
        channels = [spec.input_shape[0], width, width, width, width]
        self.convolutions = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in itertools.pairwise(channels))
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in self.convolutions)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[B,D]``."""
        # Of one channel both orders are the same in memory: contiguous() would keep the strides, and lose the speed.
        maps = images.to(memory_format=torch.channels_last)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            maps = F.relu(norm(F.max_pool2d(convolution(maps), 2)))
        return maps.flatten(1)


def _orthogonal_codes(weight: torch.Tensor) -> None:
    """Codes of length sqrt(W) like a normal vector's, orthogonal where there are no more classes than numbers."""
    nn.init.orthogonal_(weight, gain=weight.shape[1] ** 0.5)


def _require_no_batch_norm(encoder: nn.Module) -> None:
    for name, module in encoder.named_modules():
        frozen = not module.training and getattr(module, "track_running_stats", False)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not frozen:
            raise ModelContractError(
                f"image_context's encoder has batch norm ({name or 'itself'}), which takes statistics over images of "
                "several tasks and over queries. Use group norm, conv4(norm='group', head=False), or leave the encoder "
                "out; or freeze it: encoder.requires_grad_(False).eval()."
            )
