"""Rounds of labels as text tables: their figures, and what differs between two of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from auxdist.data.index import Index
from auxdist.evaluate.confusion import mean_known
from auxdist.evaluate.tables import NOTHING, percent, read_measurement, text_table
from auxdist.labels.manifest import (
    MANIFEST_NAME,
    REJECTED_NAME,
    Manifest,
    read_manifest,
    read_rejected,
)
from auxdist.labels.statistics import Changes, Sum, Totals
from auxdist.labels.store import LabelSet, latest_round
from auxdist.records import Position
from auxdist.runfolder import RunFolder, rounds_in

_FIGURES = (
    "labelled %",
    "background %",
    "objects %",
    "changed since the round before %",
    "CAM and saliency agree (IoU %)",
    "share of the segmentation affinity",
    "its standard deviation",
    "gamma of the unary predictions",
    "images that could not be read",
)
_MEASURES = ("mIoU %", "precision %", "recall %")


def labels_table(run: RunFolder) -> str:
    """A column for each round of labels: state, figures, and quality where it was measured."""
    newest, rounds = latest_round(run), rounds_in(run.labels(0).parent)
    columns = [_column(run, round, newest) for round in rounds]
    names = ("state", "made by", *_FIGURES, *_MEASURES)
    header = ["labels", *(f"round {round}" for round in rounds)]
    return text_table(header, zip(names, *columns, strict=True))


def _column(run: RunFolder, round: int, newest: int | None) -> list[str]:
    folder = run.labels(round)
    if (folder / MANIFEST_NAME).exists():
        state = "latest" if round == newest else "finished"
        figures = _figures(read_manifest(folder))
    elif (folder / REJECTED_NAME).exists():
        state, figures = "rejected", _figures(read_rejected(folder))
    else:
        state, figures = "not finished", [NOTHING] * len(_FIGURES)
    return [state, Position(round - 1, 0).stage, *figures, *_measures(run, round)]


def _figures(manifest: Manifest) -> list[str]:
    totals, mixture = manifest.totals, manifest.statistics.mixture
    pixels = max(totals.pixels, 1)
    return [
        percent(totals.coverage),
        percent(totals.background / pixels),
        percent(totals.objects / pixels),
        percent(manifest.statistics.changes.share),
        percent(manifest.statistics.agreement.iou),
        NOTHING if math.isnan(mixture.mean) else f"{mixture.mean:.4f}",
        NOTHING if math.isnan(mixture.std) else f"{mixture.std:.1e}",
        ", ".join(f"{t} {value:.4f}" for t, value in manifest.gamma.items()) or NOTHING,
        str(len(manifest.quarantined)),
    ]


def _measures(run: RunFolder, round: int) -> list[str]:
    found = read_measurement(run, f"labels-round-{round:02d}")
    if found is None:
        return [NOTHING] * len(_MEASURES)
    means = (mean_known(found.precision), mean_known(found.recall))
    return [percent(found.miou), *map(percent, means)]


@dataclass(frozen=True)
class Comparison(Sum):
    """Two rounds of labels, over the images that could be read in both."""

    num_images: int
    before: Totals
    after: Totals
    changes: Changes

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray, num_classes: int) -> Comparison:
        """Of one image: (H, W) uint8 labels 0..C and 255."""
        old, new = (Totals.of(labels, num_classes) for labels in (before, after))
        return cls(1, old, new, Changes.of(before, after, num_classes))

    @classmethod
    def none(cls, num_classes: int) -> Comparison:
        """Of no image."""
        nothing = Totals.none(num_classes)
        return cls(0, nothing, nothing, Changes.none(num_classes))

    def table(self, classes: tuple[str, ...]) -> str:
        """What each label lost and gained, and how far its pixels are the same."""
        names = ["background", *classes, "ignore"]
        columns = zip(
            names,
            _by_label(self.before),
            _by_label(self.after),
            self.changes.lost,
            self.changes.gained,
            strict=True,
        )
        rows: list[list[object]] = [
            [name, before, after, lost, gained, percent(_iou(before, lost, gained))]
            for name, before, after, lost, gained in columns
        ]
        changed, pixels = self.changes.changed, self.changes.pixels
        rows.append(["all", pixels, pixels, changed, changed, NOTHING])
        return text_table(["label", "before", "after", "lost", "gained", "IoU %"], rows)


def _by_label(totals: Totals) -> tuple[int, ...]:
    return (totals.background, *totals.classes, totals.ignore)


def _iou(before: int, lost: int, gained: int) -> float:
    union = before + gained
    return (before - lost) / union if union else math.nan


def compare(run: RunFolder, index: Index, before: int, after: int) -> Comparison:
    """Compare two rounds of labels, pixel by pixel; a rejected one can be looked at as well.

    Raises:
        DataError: a round is not finished, belongs to other images, or is damaged.
    """
    old, new = (_labels(run.labels(round), index) for round in (before, after))
    unknown = {*old.manifest.quarantined, *new.manifest.quarantined}
    num_classes = len(index.classes)
    found = Comparison.none(num_classes)
    for shard in range(len(index.shards)):
        for sample in index.samples(shard):
            if sample.key not in unknown:
                first = old.read_labels(shard, sample.key, "seg.png")
                second = new.read_labels(shard, sample.key, "seg.png")
                found += Comparison.of(first, second, num_classes)
    return found


def _labels(folder: Path, index: Index) -> LabelSet:
    # The bytes of the shards are not checked first: people look at this, nothing learns from it.
    is_rejected = not (folder / MANIFEST_NAME).exists() and (folder / REJECTED_NAME).exists()
    labels = LabelSet(folder, index, (read_rejected if is_rejected else read_manifest)(folder))
    labels.check_belongs()
    return labels
