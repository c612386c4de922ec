"""Pairwise affinities of two tasks, and their cross-task mixture A_CT (method.md 2.3).

A_t = softmax_j(query_i . key_j). The stack [A_seg, A_sal], read as an N x N image of 2 channels,
goes through 3x3 conv -> ReLU -> 1x1 conv -> softmax over the channels = w, and
A_CT = w_0 A_seg + w_1 A_sal elementwise.

Two exact forms: the dense one follows the text and holds N x N maps; the blocked one (see
affinity_rows.py) holds R x N, and when gradients are needed it recomputes each block backwards.

All in fp32 at least, whatever autocast says: the products are not scaled, and bf16 loses the maps.
Shape legend: B samples, N = h w positions, D channels of queries and keys, K maps, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from auxdist.ops.affinity_rows import (
    Keys,
    Mixer,
    affinity_rows,
    cross_rows,
    pair_rows,
    share_rows,
    stack_tasks,
)

DENSE_POSITIONS = 1024
"""Automatic choice: the dense form up to so many positions, where the N x N maps are small."""
AUTOMATIC_ROWS = 128


def widen(values: Tensor) -> Tensor:
    """The same values in fp32, or in fp64 where they are."""
    return values if values.dtype == torch.float64 else values.float()


def rows_at_once(positions: int, row_block: int) -> int:
    """Rows of a block for the configured `row_block` (0: automatic); 0 stands for the dense form.

    It does not depend on the batch size: the split of a batch must not change results.
    """
    if row_block == 0:
        row_block = positions if positions <= DENSE_POSITIONS else AUTOMATIC_ROWS
    return 0 if row_block >= positions else row_block


@dataclass(frozen=True)
class Mixing:
    """Statistics of w_0, the share of the segmentation affinity, over all pairs of positions."""

    mean: float
    std: float


class Affinity(Protocol):
    """An operator on maps at feature resolution."""

    def apply(self, values: Tensor) -> Tensor:
        """(B, K, h, w) -> (B, K, h, w), in fp32 at least."""

    def mixing(self) -> Mixing | None:
        """How two affinities were mixed; None where there is only one."""


class Unrefined:
    """The identity, where no affinity refines."""

    def apply(self, values: Tensor) -> Tensor:
        """The same values."""
        return widen(values)

    def mixing(self) -> None:
        """Nothing is mixed."""


class OwnAffinity:
    """The affinity of a single task, in the place of the cross-task affinity."""

    def __init__(self, task: TaskAffinity) -> None:
        self.task = task

    def apply(self, values: Tensor) -> Tensor:
        """A_t values: (B, K, h, w) -> (B, K, h, w), in fp32 at least."""
        product = self.task.apply(values.flatten(2).transpose(1, 2))  # (B, N, K)
        return product.transpose(1, 2).reshape(values.shape)

    def mixing(self) -> None:
        """Nothing is mixed."""


class TaskAffinity:
    """A_t of one task as an operator on rows of positions."""

    def __init__(self, keys: Keys, row_block: int = 0) -> None:
        self.keys = keys
        self.block = rows_at_once(keys.query.shape[1], row_block)

    @cached_property
    def matrix(self) -> Tensor:
        """(B, N, N); every row sums to 1."""
        with torch.autocast(self.keys.query.device.type, enabled=False):
            return affinity_rows(self.keys.query, self.keys.key)

    def apply(self, values: Tensor) -> Tensor:
        """A_t values: (B, N, D) -> (B, N, D), in fp32 at least."""
        with torch.autocast(values.device.type, enabled=False):
            if self.block == 0:
                return self.matrix @ widen(values)
            # Kernels that hold no N x N map want equal widths, on GPUs multiples of 4, where zeros
            # change no product, and each row in one piece, which F.pad does not give to rows of a
            # transposed map.
            parts = self.keys.query, self.keys.key, widen(values)
            width = -(-max(part.shape[-1] for part in parts) // 4) * 4
            padded = [F.pad(part, (0, width - part.shape[-1])).contiguous() for part in parts]
            query, key, value = (part.unsqueeze(1) for part in padded)
            found = F.scaled_dot_product_attention(query, key, value, scale=1.0)
            return found.squeeze(1)[..., : values.shape[-1]]


class CrossTaskAffinity:
    """A_CT as an operator on (B, K, h, w) maps.

    Args:
        seg, sal: the affinities of the two tasks
        mixer: the convolutions that weigh them
        renormalise: divide the rows of A_CT by their sums
    """

    def __init__(
        self, seg: TaskAffinity, sal: TaskAffinity, mixer: Mixer, renormalise: bool = False
    ) -> None:
        self.seg = seg
        self.sal = sal
        self.mixer = Mixer(widen(mixer.first), widen(mixer.second), widen(mixer.bias))
        self.renormalise = renormalise

    def apply(self, values: Tensor) -> Tensor:
        """A_CT values: (B, K, h, w) -> (B, K, h, w), in fp32 at least."""
        with torch.autocast(values.device.type, enabled=False):
            columns = widen(values).flatten(2).transpose(1, 2)  # (B, N, K)
            if self.seg.block == 0:
                product = self.matrix @ columns  # (B, N, N) @ (B, N, K) -> (B, N, K)
            else:
                rows = [self._product(start, stop, columns) for start, stop in self._blocks()]
                product = torch.cat(rows, 1)
            return product.transpose(1, 2).reshape(values.shape)

    @torch.no_grad()
    def mixing(self) -> Mixing:
        """Statistics of w. While the maps are flat it is nearly constant."""
        bias = self.mixer.bias.double()
        reference = torch.sigmoid(bias[0] - bias[1])  # w - reference is small: nothing cancels
        moments = torch.zeros(2, dtype=torch.float64, device=bias.device)
        for start, stop in self._blocks():
            share = share_rows(pair_rows(self.seg.keys, self.sal.keys, start, stop), self.mixer)
            deviation = share.double() - reference
            moments += torch.stack([deviation.sum(), deviation.square().sum()])
        batch, positions, _ = self.seg.keys.query.shape
        mean, square = (moments / (batch * positions**2)).tolist()
        return Mixing(float(reference) + mean, max(square - mean**2, 0.0) ** 0.5)

    @cached_property
    def matrix(self) -> Tensor:
        """The whole of A_CT: (B, N, N)."""
        with torch.autocast(self.mixer.bias.device.type, enabled=False):
            pair = stack_tasks([self.seg.matrix, self.sal.matrix])  # (B, 2, N, N)
            hidden = F.relu(F.conv2d(pair, self.mixer.first, padding=1))
            weights = F.conv2d(hidden, self.mixer.second, self.mixer.bias).softmax(1)
            mixed = (weights * pair).sum(1)
            return self._normal(mixed)

    def _normal(self, rows: Tensor) -> Tensor:
        return rows / rows.sum(-1, keepdim=True) if self.renormalise else rows

    def _product(self, start: int, stop: int, columns: Tensor) -> Tensor:
        """Rows start .. stop-1 of A_CT columns: (B, N, K) -> (B, stop - start, K)."""

        def product(columns: Tensor) -> Tensor:
            seg, sal = self.seg.keys, self.sal.keys
            return self._normal(cross_rows(seg, sal, self.mixer, start, stop)) @ columns

        if not torch.is_grad_enabled():
            return product(columns)
        result: Tensor = checkpoint(product, columns, use_reentrant=False, preserve_rng_state=False)
        return result

    def _blocks(self) -> Iterator[tuple[int, int]]:
        positions = self.seg.keys.query.shape[1]
        block = self.seg.block or positions
        return ((start, min(start + block, positions)) for start in range(0, positions, block))
