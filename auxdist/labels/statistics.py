"""What the labels of images add up to.

Counts are integers, so that their order is free. Floats are added image by image within a shard,
then shard by shard: the order is that of the shards, whoever made them.

Shape legend: C classes, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Self

import numpy as np

from auxdist.records import IGNORE


class Sum:
    """A dataclass of numbers, tuples of numbers and further sums, added field by field."""

    def __add__(self, other: Self) -> Self:
        assert is_dataclass(self)
        names = [field.name for field in fields(self)]
        return type(self)(*(_added(getattr(self, n), getattr(other, n)) for n in names))


def _added(a: Any, b: Any) -> Any:
    return tuple(map(_added, a, b)) if isinstance(a, tuple) else a + b


@dataclass(frozen=True)
class Totals(Sum):
    """Pixels by label: `classes[c]` those of class c."""

    pixels: int
    background: int
    ignore: int
    classes: tuple[int, ...]

    @classmethod
    def of(cls, labels: np.ndarray, num_classes: int) -> Totals:
        """Count (H, W) uint8 labels 0..C and 255."""
        counts = np.bincount(labels.ravel(), minlength=256).tolist()
        found = tuple(counts[1 : num_classes + 1])
        return cls(labels.size, counts[0], counts[IGNORE], found)

    @classmethod
    def none(cls, num_classes: int) -> Totals:
        """No pixels at all."""
        return cls(0, 0, 0, (0,) * num_classes)

    @property
    def objects(self) -> int:
        """Pixels of any class."""
        return sum(self.classes)

    @property
    def coverage(self) -> float:
        """Share of the pixels that have a label at all."""
        return 1 - self.ignore / max(self.pixels, 1)


@dataclass(frozen=True)
class Agreement(Sum):
    """Pixels by who sees an object there: the CAMs, the saliency, both or neither."""

    both: int = 0
    only_cam: int = 0
    only_saliency: int = 0
    neither: int = 0

    @property
    def iou(self) -> float:
        """Both / at least one of the two; NaN where neither sees anything."""
        seen = self.both + self.only_cam + self.only_saliency
        return self.both / seen if seen else float("nan")


@dataclass(frozen=True)
class Changes(Sum):
    """Pixels whose label is another one than in the round before.

    pixels  that were compared: those of images that could be read in both rounds
    lost    by the label that they had: 0 background, 1..C, and last the ignored ones
    gained  by the label that they have, in the same order
    """

    pixels: int
    lost: tuple[int, ...]
    gained: tuple[int, ...]

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray, num_classes: int) -> Changes:
        """Compare (H, W) uint8 labels 0..C and 255 of one image."""
        changed = before != after
        lost, gained = (_by_label(labels[changed], num_classes) for labels in (before, after))
        return cls(before.size, lost, gained)

    @classmethod
    def none(cls, num_classes: int) -> Changes:
        """Nothing was compared."""
        nothing = (0,) * (num_classes + 2)
        return cls(0, nothing, nothing)

    @property
    def changed(self) -> int:
        """Pixels with another label."""
        return sum(self.lost)

    @property
    def share(self) -> float:
        """`changed` of the compared pixels; NaN where none were compared."""
        return self.changed / self.pixels if self.pixels else float("nan")


@dataclass(frozen=True)
class Mixture(Sum):
    """The fusion weights w_0, the share of the segmentation affinity in A_CT.

    Sums over images of the mean of w_0 and of its square, over all pairs of positions.
    """

    images: int = 0
    means: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, mean: float, std: float) -> Mixture:
        """Of one image."""
        return cls(1, mean, mean**2 + std**2)

    @property
    def mean(self) -> float:
        """Every image counts the same; NaN without any."""
        return self.means / self.images if self.images else float("nan")

    @property
    def std(self) -> float:
        """Over pairs of positions and over images; NaN without any."""
        if not self.images:
            return float("nan")
        return max(self.squares / self.images - self.mean**2, 0.0) ** 0.5


@dataclass(frozen=True)
class Statistics(Sum):
    """Everything that is known of the labels of some images without any ground truth."""

    totals: Totals
    changes: Changes
    agreement: Agreement = Agreement()
    mixture: Mixture = Mixture()
    not_finite: int = 0
    """Images whose CAMs or saliency are not finite; their label is all ignore."""

    @classmethod
    def none(cls, num_classes: int) -> Statistics:
        """Of no image."""
        return cls(Totals.none(num_classes), Changes.none(num_classes))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Statistics:
        """Back from `dataclasses.asdict` by way of JSON."""
        return cls(
            Totals(**_tuples(value["totals"])),
            Changes(**_tuples(value["changes"])),
            Agreement(**value["agreement"]),
            Mixture(**value["mixture"]),
            value["not_finite"],
        )

    def summary(self) -> dict[str, Any]:
        """The shares that people look at, as plain JSON; None where there is nothing to share."""
        pixels = max(self.totals.pixels, 1)
        return {
            "ignore": self.totals.ignore / pixels,
            "background": self.totals.background / pixels,
            "classes": [count / pixels for count in self.totals.classes],
            "changed": _or_none(self.changes.share),
            "lost": _shares(self.changes.lost, self.changes.pixels),
            "gained": _shares(self.changes.gained, self.changes.pixels),
            "agreement": _or_none(self.agreement.iou),
            "mixing_mean": _or_none(self.mixture.mean),
            "mixing_std": _or_none(self.mixture.std),
        }


def _shares(counts: Sequence[int], pixels: int) -> list[float] | None:
    return [count / pixels for count in counts] if pixels else None


def _by_label(labels: np.ndarray, num_classes: int) -> tuple[int, ...]:
    counts = np.bincount(labels, minlength=256).tolist()
    return (*counts[: num_classes + 1], counts[IGNORE])


def _tuples(value: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
