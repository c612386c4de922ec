"""The integer matrix that every measure comes from.

Shape legend: C foreground classes, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from auxdist.errors import DataError
from auxdist.records import IGNORE


@dataclass(frozen=True)
class Measurement:
    """Pixels by true and predicted label, over whole images.

    matrix       (C+1, C+2) int64: rows are the truth 0..C, columns the prediction 0..C and, last,
                 pixels without a prediction (255)
    void_pixels  pixels whose truth is 255, which count nowhere
    num_images   images measured
    """

    matrix: np.ndarray
    void_pixels: int
    num_images: int

    @classmethod
    def none(cls, num_classes: int) -> Measurement:
        """Of no image."""
        return cls(np.zeros((num_classes + 1, num_classes + 2), dtype=np.int64), 0, 0)

    @classmethod
    def of(cls, truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> Measurement:
        """Of one image: truth and predicted are (H, W) uint8 labels 0..C and 255.

        Raises:
            DataError: the sizes differ, or there is another label.
        """
        if truth.shape != predicted.shape:
            raise DataError(
                f"truth is {_size(truth)} pixels, but the prediction {_size(predicted)}; both must "
                "be of the size of the image."
            )
        known = truth != IGNORE
        rows = _labels(truth[known], num_classes, "ground truth")
        columns = np.full(rows.shape, num_classes + 1, dtype=np.int64)
        is_labelled = predicted[known] != IGNORE
        columns[is_labelled] = _labels(predicted[known][is_labelled], num_classes, "prediction")
        shape = (num_classes + 1, num_classes + 2)
        counts = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1])
        return cls(counts.reshape(shape).astype(np.int64), int((~known).sum()), 1)

    def __add__(self, other: Measurement) -> Measurement:
        return Measurement(
            self.matrix + other.matrix,
            self.void_pixels + other.void_pixels,
            self.num_images + other.num_images,
        )

    @property
    def pixels(self) -> int:
        """All pixels, void ones too."""
        return int(self.matrix.sum()) + self.void_pixels

    @property
    def iou(self) -> np.ndarray:
        """(C+1,) float64 intersection over union; NaN where neither truth nor prediction has it.

        A pixel without a prediction is a missed one: it is in the union of its true class.
        """
        hits = np.diagonal(self.matrix)
        return _share(hits, self.matrix.sum(axis=1) + self.matrix.sum(axis=0)[:-1] - hits)

    @property
    def precision(self) -> np.ndarray:
        """(C+1,) float64 share of the pixels predicted as a class that are it; NaN without any."""
        return _share(np.diagonal(self.matrix), self.matrix.sum(axis=0)[:-1])

    @property
    def recall(self) -> np.ndarray:
        """(C+1,) float64 share of the pixels of a class that are found; NaN without any.

        A pixel without a prediction is a missed one.
        """
        return _share(np.diagonal(self.matrix), self.matrix.sum(axis=1))

    @property
    def miou(self) -> float:
        """Mean of `iou` over background and the classes that occur; NaN where there are none."""
        return mean_known(self.iou)

    @property
    def accuracy(self) -> float:
        """Share of the pixels of known truth that are right."""
        return float(np.diagonal(self.matrix).sum() / max(self.matrix.sum(), 1))

    @property
    def coverage(self) -> float:
        """Share of the pixels of known truth that have a prediction."""
        return float(self.matrix[:, :-1].sum() / max(self.matrix.sum(), 1))

    def as_json(self) -> dict[str, Any]:
        """For a file: the integers, and what people want to read."""
        return {**self.figures(), "matrix": self.matrix.tolist()}

    def figures(self) -> dict[str, Any]:
        """What people want to read, as plain JSON."""
        return {
            "miou": None if np.isnan(self.miou) else self.miou,
            "iou": _or_none(self.iou),
            "precision": _or_none(self.precision),
            "recall": _or_none(self.recall),
            "accuracy": self.accuracy,
            "coverage": self.coverage,
            "num_images": self.num_images,
            "void_pixels": self.void_pixels,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Measurement:
        """Back from `as_json`, from the integers alone."""
        matrix = np.asarray(value["matrix"], dtype=np.int64)
        return cls(matrix, value["void_pixels"], value["num_images"])


def mean_known(values: np.ndarray) -> float:
    """The mean of the values that are not NaN; NaN where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    empty = np.full(part.shape, np.nan)
    return np.divide(part.astype(np.float64), whole, out=empty, where=whole > 0)


def _or_none(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


def _size(labels: np.ndarray) -> str:
    height, width = labels.shape
    return f"{width}x{height}"


def _labels(labels: np.ndarray, num_classes: int, what: str) -> np.ndarray:
    """The same labels as int64; refused where one is no class."""
    if labels.size and (found := int(labels.max())) > num_classes:
        raise DataError(
            f"{what} has the label {found}; 0..{num_classes} and {IGNORE} were expected. Are the "
            "classes those of these shards?"
        )
    return labels.astype(np.int64)
