"""Which samples each step sees, as a pure function of (shard sizes, seed, round, epoch).

S shards, G rows of a global batch, R rows of a rank, W shards in a window. Shards are put in random
order; each W of them form a window, and samples are put in random order inside it. So a reader has
few shards open, and memory is O(S) plus one window whatever the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from auxdist.data.keys import generator, permutation
from auxdist.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one step. `sample` counts the eligible samples of `shard`; both are -1 in filling.

    shard   (R,) int64
    sample  (R,) int64
    """

    shard: np.ndarray
    sample: np.ndarray
    step: int
    epoch: int

    def of_rank(self, rank: int, size: int) -> Rows:
        """The contiguous share of a rank: ceil(G / size) rows on every rank, filled up with -1."""
        share = -(-len(self.shard) // size)
        shard, sample = (_filled(a, share * size) for a in (self.shard, self.sample))
        mine = slice(rank * share, (rank + 1) * share)
        return Rows(shard[mine], sample[mine], self.step, self.epoch)


@dataclass(frozen=True, eq=False)
class Plan:
    """The order of a whole stage.

    shard_sizes     (S,) int64 eligible samples of each shard
    shuffle_shards  W
    last_batch      "pad" fills the short last batch of an epoch with -1, "drop" leaves it out
    """

    shard_sizes: np.ndarray
    seed: int
    round: int
    epochs: int
    global_batch: int
    shuffle_shards: int
    last_batch: Literal["pad", "drop"]

    def __post_init__(self) -> None:
        if self.num_samples == 0:
            raise DataError(
                "data.train: the shards hold no sample to train on; build shards with images, or "
                "set data.skip_unlabelled to false if none of them has a class."
            )
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"global_batch is {self.global_batch}, but there are only {self.num_samples} "
                "samples and last_batch is drop: no step is left. Take a smaller global_batch, or "
                "last_batch pad."
            )

    @property
    def num_samples(self) -> int:
        """Eligible samples, each seen once an epoch (less a dropped last batch)."""
        return int(np.sum(self.shard_sizes))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of every epoch."""
        if self.last_batch == "drop":
            return self.num_samples // self.global_batch
        return -(-self.num_samples // self.global_batch)

    @property
    def total_steps(self) -> int:
        """Steps of the stage."""
        return self.steps_per_epoch * self.epochs

    def rows(self, step: int) -> Rows:
        """The global batch of a step, (G,) rows, whatever the number of ranks and workers."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self.global_batch
        stop = min(start + self.global_batch, self.num_samples)
        parts = _slices(_windows(self, epoch), start, stop)
        # [(2, n_w) of each window touched] -> (2, stop - start)
        places = np.concatenate([_window(self, epoch, w)[:, part] for w, part in parts], axis=1)
        shard, sample = (_filled(row, self.global_batch) for row in places)
        return Rows(shard, sample, step, epoch)


@dataclass(frozen=True, eq=False)
class _Windows:
    """Shards of an epoch in their order (S,), and where each window ends in it, in samples."""

    shards: np.ndarray
    ends: np.ndarray


# Plans compare by identity, so these caches keep the order of the plans in use now.
@lru_cache(maxsize=4)
def _windows(plan: Plan, epoch: int) -> _Windows:
    shards = permutation(generator(plan.seed, plan.round, epoch, "shards"), len(plan.shard_sizes))
    firsts = np.arange(0, len(shards), plan.shuffle_shards)
    sizes = np.add.reduceat(plan.shard_sizes[shards], firsts)  # (S,) -> (ceil(S / W),)
    return _Windows(shards, np.cumsum(sizes))


@lru_cache(maxsize=8)
def _window(plan: Plan, epoch: int, window: int) -> np.ndarray:
    """(2, n) int64 shard and sample of every place of a window."""
    first = window * plan.shuffle_shards
    shards = _windows(plan, epoch).shards[first : first + plan.shuffle_shards]
    sizes = plan.shard_sizes[shards]
    starts = np.cumsum(sizes) - sizes  # (W,) place of each shard's first sample
    samples = np.arange(sizes.sum()) - np.repeat(starts, sizes)  # (n,)
    order = permutation(generator(plan.seed, plan.round, epoch, "window", window), len(samples))
    return np.stack([np.repeat(shards, sizes), samples])[:, order]


def _slices(windows: _Windows, start: int, stop: int) -> list[tuple[int, slice]]:
    """Windows that samples start..stop-1 of an epoch lie in, and which of their places."""
    first, last = np.searchsorted(windows.ends, [start, stop - 1], side="right").tolist()
    parts = []
    for window in range(first, last + 1):
        begin = int(windows.ends[window - 1]) if window else 0
        end = int(windows.ends[window])
        parts.append((window, slice(max(start - begin, 0), min(stop, end) - begin)))
    return parts


def _filled(values: np.ndarray, length: int) -> np.ndarray:
    return np.pad(values, (0, length - len(values)), constant_values=-1)
