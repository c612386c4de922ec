"""What every backbone offers to AuxSegNet, and expects of its images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

Colour = tuple[float, float, float]
"""Red, green, blue; 0 is black, 1 is white."""
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)


class Backbone(Protocol):
    """A network from images to features; also an nn.Module.

    `out_channels` of the features, which are `stride` times smaller than the image (rounded up).
    Images are normalised by `mean` and `std`.
    """

    out_channels: int
    stride: int
    mean: Colour
    std: Colour

    def __call__(self, image: Tensor, noise: Tensor | None) -> Tensor:
        """(B, 3, H, W) normalised image, (B,) dropout keys -> (B, out_channels, h, w) features."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters, frozen ones too."""
        ...

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that an optimiser may change."""
        ...
