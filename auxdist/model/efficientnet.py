"""EfficientNet-Lite0 (Tan & Le 2019, Liu 2020), dilated to stride 8, for ImageNet weights.

Lite: no squeeze-and-excitation, and ReLU6 for Swish. As in ResNet-38 the first convolution is
frozen and so is every BatchNorm. Convolutions are padded as TensorFlow's "same", which is how the
published weights were trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auxdist.model.batchnorm import FrozenBatchNorm
from auxdist.model.depthwise import SIDE, depthwise5x5

_STAGES = (
    # kernel, stride, expansion, inputs, outputs, blocks
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)


class EfficientNetLite0(nn.Module):
    """3.0 M parameters, 320 channels: those before the 1x1 convolution of the ImageNet classifier.

    They are signed. On 160 VOC images the best CAMs of a linear classifier have 0.36 mIoU with them
    and 0.32 with the classifier's own 1280, which are not and make the branches 4 times as large.

    Args:
        stride: of the features, 4 to 32; where a stage would go beyond, its stride becomes a
            dilation of all convolutions after it, so that the weights keep their meaning
    """

    out_channels = 320
    mean = (127 / 255,) * 3
    std = (128 / 255,) * 3

    def __init__(self, stride: int = 8) -> None:
        super().__init__()
        self.stride = stride
        self.stem = ConvNorm(3, 32, 3, stride=2)
        self.stem.conv.requires_grad_(False)
        self.blocks = nn.Sequential(*_blocks(stride))

    def forward(self, image: Tensor, noise: Tensor | None) -> Tensor:
        """(B, 3, H, W) -> (B, 320, ceil(H / stride), ceil(W / stride)); it has no dropout."""
        # Training on a CPU takes three quarters of the time so.
        image = image.contiguous(memory_format=torch.channels_last)
        return self.blocks(self.stem(image))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """All convolutions but the first."""
        named = self.named_parameters()
        return [p for name, p in named if ".conv." in name and not name.startswith("stem.")]


class ConvNorm(nn.Module):
    """activation(BatchNorm(convolution(x))); one convolution, for BatchNorm is fixed."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: Callable[[Tensor], Tensor] | None = F.relu6,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, dilation=dilation, groups=groups, bias=False
        )
        gain = 2.0 if activation else 1.0
        nn.init.normal_(self.conv.weight, std=(gain / self.conv.weight[0].numel()) ** 0.5)
        self.norm = FrozenBatchNorm(outputs, eps=1e-3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, ceil(h / stride), ceil(w / stride))."""
        scale, shift = self.norm.affine()
        weight = self.conv.weight * scale[:, None, None, None]
        y = _convolve_same(x, weight, shift, self.conv)
        return y if self.activation is None else self.activation(y)


class MobileBlock(nn.Module):
    """1x1 to `expansion` times the channels, depthwise kernel, 1x1 without activation; a shortcut
    where the shape stays (the inverted residual of MobileNetV2)."""

    def __init__(
        self, kernel: int, expansion: int, inputs: int, outputs: int, stride: int, dilation: int
    ) -> None:
        super().__init__()
        mid = expansion * inputs
        self.expand = ConvNorm(inputs, mid, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(mid, mid, kernel, stride, dilation, groups=mid)
        self.project = ConvNorm(mid, outputs, 1, activation=None)
        self.residual = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, ceil(h / stride), ceil(w / stride))."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def _blocks(output_stride: int) -> Iterator[MobileBlock]:
    reached, dilation = 2, 1
    for kernel, first_stride, expansion, inputs, outputs, count in _STAGES:
        for i in range(count):
            wanted = first_stride if i == 0 else 1
            stride = wanted if reached * wanted <= output_stride else 1
            channels = inputs if i == 0 else outputs
            yield MobileBlock(kernel, expansion, channels, outputs, stride, dilation)
            reached *= stride
            dilation *= wanted // stride


def _convolve_same(x: Tensor, weight: Tensor, bias: Tensor, like: nn.Conv2d) -> Tensor:
    """A convolution with TensorFlow's "same" padding, its other numbers those of `like`.

    ceil(n / stride) positions need so many zeros in all; where the number is odd, the bottom and
    the right get one more, which only copying can give.
    """
    stride, dilation, reach = like.stride[0], like.dilation[0], like.kernel_size[0] - 1
    size = x.shape[2:]
    rows, columns = (
        max((-(-n // stride) - 1) * stride + reach * dilation + 1 - n, 0) for n in size
    )
    if rows % 2 or columns % 2:
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        rows = columns = 0
    elif dilation > 1 and reach and stride == 1 and x.device.type == "cpu":
        # oneDNN has no fast depthwise convolution with holes, least of all backwards.
        y = _convolve(_split(x, dilation), weight, bias, like, (reach // 2, reach // 2), dilation=1)
        return _join(y, dilation)[..., : size[0], : size[1]]
    return _convolve(x, weight, bias, like, (rows // 2, columns // 2), dilation)


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    like: nn.Conv2d,
    padding: tuple[int, int],
    dilation: int,
) -> Tensor:
    is_plain = like.stride[0] == dilation == 1 and padding == (2, 2)
    if like.groups > 1 and like.kernel_size[0] == SIDE and is_plain:
        return depthwise5x5(x, weight, bias)
    return F.conv2d(x, weight, bias, like.stride, padding, dilation, like.groups)


def _split(x: Tensor, d: int) -> Tensor:
    """(B, C, h, w) -> (B d d, C, ceil(h / d), ceil(w / d)): every d-th row and column, from each
    of the first d, as an image of its own; zeros fill up. All of it channels last in memory."""
    x = F.pad(x, (0, -x.shape[3] % d, 0, -x.shape[2] % d))
    b, c, h, w = x.shape
    grid = x.permute(0, 2, 3, 1).reshape(b, h // d, d, w // d, d, c)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(b * d * d, h // d, w // d, c).permute(0, 3, 1, 2)


def _join(x: Tensor, d: int) -> Tensor:
    """The opposite of `_split`, but for what was filled up."""
    b, c, h, w = x.shape
    grid = x.permute(0, 2, 3, 1).reshape(b // d // d, d, d, h, w, c)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, h * d, w * d, c).permute(0, 3, 1, 2)
