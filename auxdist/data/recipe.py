"""What a build is made of: samples as sources have them, and how they become members."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from auxdist.data.reader import encode_gray, encode_labels
from auxdist.data.shardfile import SampleFacts
from auxdist.errors import DataError
from auxdist.records import IGNORE


@dataclass(frozen=True)
class RawSample:
    """One image as its source has it.

    jpeg      the bytes to keep
    pixels    (H, W, 3) uint8 RGB, what they decode to
    classes   image-level labels, 0..C-1
    truth     (H, W) uint8: 0, 1..C, 255; or None where there is none
    """

    jpeg: bytes
    pixels: np.ndarray
    classes: tuple[int, ...]
    truth: np.ndarray | None


class Item(Protocol):
    """Knows how to read one sample; small, and sent to other processes."""

    @property
    def key(self) -> str:
        """Name of the sample."""

    @property
    def num_bytes(self) -> int:
        """About how much it adds to a shard."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that `read` may open."""

    def read(self) -> RawSample:
        """Read and check the sample; DataError where it is bad."""


class SaliencyMaker(Protocol):
    """Gives saliency maps to images."""

    @property
    def name(self) -> str:
        """Where the maps come from, in words, for the index."""

    def files(self, key: str) -> tuple[Path, ...]:
        """All files that are opened for the sample alone."""

    def __call__(self, key: str, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) uint8."""


@dataclass(frozen=True)
class Recipe:
    """A split to be built. `origin` says in words and hashes what the items are made from."""

    split: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ground_truth: bool
    items: Sequence[Item]
    saliency: SaliencyMaker | None
    origin: Mapping[str, Any]


def encode_sample(
    item: Item,
    num_classes: int,
    palette: Sequence[tuple[int, int, int]],
    saliency: SaliencyMaker | None,
) -> tuple[str, Mapping[str, bytes], SampleFacts]:
    """Read one sample, check it, make its saliency: key, members by extension, facts.

    Raises:
        DataError: a bad sample.
    """
    raw = item.read()
    height, width = raw.pixels.shape[:2]
    _check_range(item.key, "class", raw.classes, 0, num_classes - 1)
    facts = SampleFacts(width, height, tuple(sorted(set(raw.classes))))
    members = {"jpg": raw.jpeg, "json": _dump(asdict(facts))}
    if saliency is not None:
        members["sal.png"] = encode_gray(saliency(item.key, raw.pixels))
    if raw.truth is not None:
        values = np.unique(raw.truth[raw.truth != IGNORE]).tolist()
        _check_range(item.key, "mask label", values, 0, num_classes)
        members["gt.png"] = encode_labels(raw.truth, palette)
    return item.key, members, facts


def _check_range(key: str, what: str, values: Iterable[int], low: int, high: int) -> None:
    for value in values:
        if not low <= value <= high:
            raise DataError(
                f"{key}: {what} {value} is out of range {low}..{high}; check the labels against "
                "the list of classes."
            )


def _dump(value: object) -> bytes:
    return (json.dumps(value, sort_keys=True) + "\n").encode()
