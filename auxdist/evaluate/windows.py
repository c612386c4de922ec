"""Large images in overlapping windows, put together at feature resolution.

Windows overlap by half and begin at multiples of the stride, so that their features lie on those
of the whole image; with a backbone that pads by the size, as EfficientNet, within a stride of them.
Where several windows see a feature, their logits are averaged; the weight of each falls linearly
towards its border, where it knows least about the surroundings.
"""

from __future__ import annotations

import torch
from torch import Tensor


def intervals(length: int, window: int, stride: int) -> list[tuple[int, int]]:
    """First and last+1 pixel of the windows along one side of an image.

    One interval where the side fits into the window, or `window` is 0.
    """
    if window == 0 or length <= window:
        return [(0, length)]
    step = max(window // 2 // stride, 1) * stride
    last = -(-(length - window) // stride) * stride
    starts = [*range(0, last, step), last]
    return [(start, min(start + window, length)) for start in starts]


class Blend:
    """The weighted mean of overlapping windows (K, h', w') over an image of `size` pixels."""

    def __init__(self, size: tuple[int, ...], stride: int) -> None:
        self._shape = tuple(-(-side // stride) for side in size)
        self._stride = stride
        self._sum: Tensor | None = None
        self._weight: Tensor | None = None

    def add(self, top: int, left: int, values: Tensor) -> None:
        """Add the features of the window whose first pixel is at `top`, `left`."""
        if self._sum is None or self._weight is None:
            self._sum = values.new_zeros((len(values), *self._shape))
            self._weight = values.new_zeros(self._shape)
        height, width = values.shape[1:]
        weight = _tent(height, values)[:, None] * _tent(width, values)
        top, left = top // self._stride, left // self._stride
        rows, columns = slice(top, top + height), slice(left, left + width)
        self._sum[:, rows, columns] += weight * values
        self._weight[rows, columns] += weight

    def mean(self) -> Tensor:
        """(K, h, w): the weighted mean of what was added."""
        assert self._sum is not None
        assert self._weight is not None
        return self._sum / self._weight


def _tent(length: int, like: Tensor) -> Tensor:
    """1, 2, .., 2, 1: the distance to the nearer end."""
    ramp = torch.arange(1, length + 1, dtype=like.dtype, device=like.device)
    return torch.minimum(ramp, ramp.flip(0))
