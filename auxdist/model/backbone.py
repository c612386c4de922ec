"""What every backbone offers to AuxSegNet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn


class Backbone(Protocol):
    """A network from images to features; also an nn.Module.

    `out_channels` of the features, which are `stride` times smaller than the image (rounded up).
    """

    out_channels: int
    stride: int

    def __call__(self, image: Tensor, noise: Tensor | None) -> Tensor:
        """(B, 3, H, W) normalised image, (B,) dropout keys -> (B, out_channels, h, w) features."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters, frozen ones too."""
        ...

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that an optimiser may change."""
        ...
