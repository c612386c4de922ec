"""Channel dropout whose mask is a pure function of the sample, the layer and the channel.

So a sample has the same masks in any batch, on any rank, in any process and on any device.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn


class KeyedDropout2d(nn.Module):
    """Dropout2d with the mask of each sample drawn from its key.

    Args:
        probability: of a channel to be zeroed; the others are scaled by 1 / (1 - probability)
        layer: a name, different for every layer of a network, so that their masks are independent
    """

    def __init__(self, probability: float, layer: str) -> None:
        super().__init__()
        self.probability = probability
        self.layer = zlib.crc32(layer.encode())

    def forward(self, features: Tensor, noise: Tensor | None) -> Tensor:
        """(B, C, h, w) features, (B,) int64 keys; unchanged in eval mode or without keys."""
        if not self.training or noise is None:
            return features
        uniform = keyed_uniform(noise, self.layer, features.shape[1])  # (B, C)
        scale = (uniform >= self.probability) / (1 - self.probability)
        return features * scale.to(features.dtype)[:, :, None, None]


def keyed_uniform(keys: Tensor, layer: int, num: int) -> Tensor:
    """(B,) int64 keys -> (B, num) float32 in [0, 1), a pure function of (key, layer, column)."""
    columns = torch.arange(num, device=keys.device, dtype=torch.int64)
    rows = _splitmix64(_splitmix64(keys) + layer)  # (B,)
    bits = _splitmix64(rows[:, None] + columns * _GOLDEN)  # (B, num)
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _splitmix64(state: Tensor) -> Tensor:
    """Steele, Lea & Flood 2014; int64 arithmetic wraps like uint64."""
    mixed = state + _GOLDEN
    mixed = (mixed ^ _shift_right(mixed, 30)) * _FIRST
    mixed = (mixed ^ _shift_right(mixed, 27)) * _SECOND
    return mixed ^ _shift_right(mixed, 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift; that of int64 tensors copies the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
