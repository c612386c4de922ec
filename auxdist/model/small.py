"""A small residual network for CPUs: trains from scratch in minutes.

GroupNorm, because its statistics belong to one sample: nothing depends on who shares a batch.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from auxdist.model.backbone import IMAGENET_MEAN, IMAGENET_STD
from auxdist.model.dropout import KeyedDropout2d


class SmallBackbone(nn.Module):
    """Pre-activation residual blocks, stride 8, 4 * width channels."""

    stride = 8
    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.out_channels = 4 * width
        self.stem = _conv3x3(3, width, stride=2)
        self.block1 = ResidualBlock(width, width, stride=2)
        self.block2 = ResidualBlock(width, 2 * width, stride=2)
        self.block3 = ResidualBlock(2 * width, 4 * width, dilation=2)
        self.block4 = ResidualBlock(4 * width, 4 * width, dilation=4)
        self.norm = _norm(4 * width)
        self.dropout = KeyedDropout2d(0.1, "small.dropout")

    def forward(self, image: Tensor, noise: Tensor | None) -> Tensor:
        """(B, 3, H, W) -> (B, 4 width, ceil(H / 8), ceil(W / 8))."""
        x = self.block1(self.stem(image))
        x = self.block3(self.block2(x))
        x = self.block4(self.dropout(x, noise))
        return F.relu(self.norm(x))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """All of them."""
        return list(self.parameters())


class ResidualBlock(nn.Module):
    """y = ReLU(GN(x)); x or 1x1(y) + 3x3(ReLU(GN(3x3(y))))."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = _conv3x3(inputs, outputs, stride, dilation)
        self.norm2 = _norm(outputs)
        self.conv2 = _conv3x3(outputs, outputs, 1, dilation)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h / stride, w / stride)."""
        y = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return shortcut + self.conv2(F.relu(self.norm2(self.conv1(y))))


def _conv3x3(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
    return conv


def _norm(channels: int) -> nn.GroupNorm:
    """Groups of 8 channels where they divide, else of fewer."""
    size = next(size for size in (8, 4, 2, 1) if channels % size == 0)
    return nn.GroupNorm(channels // size, channels)
