"""Wide ResNet-38 (model A1 of Wu et al. 2016, in PSA's form): method.md 2.1, official names.

conv1a is frozen, and so is every BatchNorm: a fixed affine map per channel, in training too.
"""

from __future__ import annotations

from torch import Tensor, nn

from auxdist.model.backbone import IMAGENET_MEAN, IMAGENET_STD
from auxdist.model.batchnorm import FrozenBatchNorm
from auxdist.model.dropout import KeyedDropout2d

_STAGES = (
    # name, inputs, mid, outputs, blocks, stride, dilations of the first block, of the others
    ("b2", 64, 128, 128, 3, 2, (1, 1), (1, 1)),
    ("b3", 128, 256, 256, 3, 2, (1, 1), (1, 1)),
    ("b4", 256, 512, 512, 6, 2, (1, 1), (1, 1)),
    ("b5", 512, 512, 1024, 3, 1, (1, 2), (2, 2)),
)


class ResNet38(nn.Module):
    """Stride 8, 4096 channels."""

    out_channels = 4096
    stride = 8
    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    def __init__(self) -> None:
        super().__init__()
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.conv1a.requires_grad_(False)
        names = []
        for name, inputs, mid, outputs, count, stride, first, others in _STAGES:
            for i in range(count):
                names.append(name if i == 0 else f"{name}_{i}")
                block = (
                    ResBlock(inputs, mid, outputs, stride, first)
                    if i == 0
                    else ResBlock(outputs, mid, outputs, 1, others)
                )
                self.add_module(names[-1], block)
        self.b6 = Bottleneck("b6", 1024, (512, 1024), 2048, 0.3)
        self.b7 = Bottleneck("b7", 2048, (1024, 2048), 4096, 0.5)
        self.bn7 = FrozenBatchNorm(4096)
        self._residual = tuple(names)

    def forward(self, image: Tensor, noise: Tensor | None) -> Tensor:
        """(B, 3, H, W) -> (B, 4096, ceil(H / 8), ceil(W / 8))."""
        x = self.conv1a(image)
        for name in self._residual:
            x = self.get_submodule(name)(x)
        x = self.b7(self.b6(x, noise), noise)
        return self.bn7(x)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """All convolutions but conv1a."""
        frozen = {id(self.conv1a.weight)}
        for module in self.modules():
            if isinstance(module, FrozenBatchNorm):
                frozen |= {id(p) for p in module.parameters()}
        return [p for p in self.parameters() if id(p) not in frozen]


class ResBlock(nn.Module):
    """y = ReLU(BN(x)); x or 1x1(y) + 3x3(ReLU(BN(3x3(y))))."""

    def __init__(
        self, inputs: int, mid: int, outputs: int, stride: int, dilations: tuple[int, int]
    ) -> None:
        super().__init__()
        self.bn_branch2a = FrozenBatchNorm(inputs)
        self.conv_branch2a = _conv3x3(inputs, mid, stride, dilations[0])
        self.bn_branch2b1 = FrozenBatchNorm(mid)
        self.conv_branch2b1 = _conv3x3(mid, outputs, 1, dilations[1])
        self.conv_branch1: nn.Conv2d | None = None
        if stride != 1 or inputs != outputs:
            self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h / stride, w / stride)."""
        y = self.bn_branch2a(x)
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(y)
        return shortcut + self.conv_branch2b1(self.bn_branch2b1(self.conv_branch2a(y)))


class Bottleneck(nn.Module):
    """1x1 - 3x3 with dilation 4 - 1x1, dropout before the last two; the shortcut is a 1x1."""

    def __init__(
        self, name: str, inputs: int, mids: tuple[int, int], outputs: int, dropout: float
    ) -> None:
        super().__init__()
        first, second = mids
        self.bn_branch2a = FrozenBatchNorm(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, first, 1, bias=False)
        self.bn_branch2b1 = FrozenBatchNorm(first)
        self.dropout_2b1 = KeyedDropout2d(dropout, f"{name}.dropout_2b1")
        self.conv_branch2b1 = _conv3x3(first, second, 1, 4)
        self.bn_branch2b2 = FrozenBatchNorm(second)
        self.dropout_2b2 = KeyedDropout2d(dropout, f"{name}.dropout_2b2")
        self.conv_branch2b2 = nn.Conv2d(second, outputs, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        y = self.bn_branch2a(x)
        z = self.bn_branch2b1(self.conv_branch2a(y))
        z = self.bn_branch2b2(self.conv_branch2b1(self.dropout_2b1(z, noise)))
        return self.conv_branch1(y) + self.conv_branch2b2(self.dropout_2b2(z, noise))


def _conv3x3(inputs: int, outputs: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)
