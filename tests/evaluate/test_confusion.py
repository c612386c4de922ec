"""The integer matrix and what is read from it."""

import math

import numpy as np
import pytest

from auxdist.errors import DataError
from auxdist.evaluate.confusion import Measurement

NUM_CLASSES = 3


def random_labels(seed: int) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.choice(np.array([0, 1, 2, 3, 255], dtype=np.uint8), (17, 23))


def test_matrix_equals_counting_pixel_by_pixel() -> None:
    truth, predicted = random_labels(0), random_labels(1)
    matrix, void = [[0] * 5 for _ in range(4)], 0
    for y, x in np.ndindex(17, 23):
        if truth[y, x] == 255:
            void += 1
        else:
            matrix[truth[y, x]][4 if predicted[y, x] == 255 else predicted[y, x]] += 1
    found = Measurement.of(truth, predicted, NUM_CLASSES)
    assert found.matrix.tolist() == matrix
    assert found.matrix.dtype == np.int64
    assert (found.void_pixels, found.num_images, found.pixels) == (void, 1, 17 * 23)


def test_iou_equals_sets_of_pixels() -> None:
    truth, predicted = random_labels(2), random_labels(3)
    known = truth != 255
    ious = [
        (known & (truth == c) & (predicted == c)).sum()
        / (known & ((truth == c) | (predicted == c))).sum()
        for c in range(4)
    ]
    found = Measurement.of(truth, predicted, NUM_CLASSES)
    assert found.iou.tolist() == pytest.approx(ious, abs=0)
    assert found.miou == pytest.approx(np.mean(ious), abs=1e-15)
    assert found.accuracy == (truth == predicted)[known].mean()


def test_ignored_pixels_count_as_missed_never_as_right() -> None:
    truth = np.array([[1, 1, 0, 0]], dtype=np.uint8)
    predicted = np.array([[1, 255, 0, 255]], dtype=np.uint8)
    found = Measurement.of(truth, predicted, 1)
    assert found.iou.tolist() == [0.5, 0.5]
    assert found.coverage == 0.5


def test_precision_and_recall_equal_sets_of_pixels() -> None:
    truth, predicted = random_labels(4), random_labels(5)
    known = truth != 255
    found = Measurement.of(truth, predicted, NUM_CLASSES)
    for c in range(4):
        is_right = (known & (truth == c) & (predicted == c)).sum()
        assert found.precision[c] == is_right / (known & (predicted == c)).sum()
        assert found.recall[c] == is_right / (known & (truth == c)).sum()


def test_precision_knows_nothing_of_ignored_pixels_but_recall_misses_them() -> None:
    truth = np.array([[1, 1, 0, 0]], dtype=np.uint8)
    predicted = np.array([[1, 255, 1, 255]], dtype=np.uint8)
    found = Measurement.of(truth, predicted, 2)
    assert found.precision.tolist() == pytest.approx([math.nan, 0.5, math.nan], nan_ok=True)
    assert found.recall.tolist() == pytest.approx([0, 0.5, math.nan], nan_ok=True)
    assert found.as_json()["precision"] == [None, 0.5, None]


def test_class_that_occurs_nowhere_is_left_out_of_the_mean() -> None:
    truth = np.array([[0, 1]], dtype=np.uint8)
    found = Measurement.of(truth, truth, NUM_CLASSES)
    assert found.miou == 1.0
    assert [math.isnan(value) for value in found.iou] == [False, False, True, True]
    assert math.isnan(Measurement.none(NUM_CLASSES).miou)


def test_sum_of_images_is_the_measurement_of_all() -> None:
    pairs = [(random_labels(n), random_labels(n + 9)) for n in range(4)]
    total = sum((Measurement.of(*pair, NUM_CLASSES) for pair in pairs), Measurement.none(3))
    truth, predicted = (np.concatenate(side) for side in zip(*pairs, strict=True))
    at_once = Measurement.of(truth, predicted, NUM_CLASSES)
    assert (total.matrix == at_once.matrix).all()
    assert (total.num_images, total.pixels) == (4, at_once.pixels)


def test_json_keeps_every_integer() -> None:
    found = Measurement.of(random_labels(0), random_labels(1), NUM_CLASSES)
    value = found.as_json()
    back = Measurement.from_json(value)
    assert (back.matrix == found.matrix).all()
    assert back.as_json() == value
    assert Measurement.none(2).as_json()["miou"] is None


@pytest.mark.parametrize("which", ["ground truth", "prediction"])
def test_label_out_of_range_is_named(which: str) -> None:
    good, bad = np.zeros((2, 2), dtype=np.uint8), np.full((2, 2), 4, dtype=np.uint8)
    pair = (bad, good) if which == "ground truth" else (good, bad)
    with pytest.raises(DataError, match=rf"{which} has the label 4; 0..3 and 255 were expected"):
        Measurement.of(*pair, NUM_CLASSES)


def test_sizes_must_agree() -> None:
    with pytest.raises(DataError, match=r"truth is 2x3 pixels, but the prediction 3x2"):
        Measurement.of(np.zeros((3, 2), np.uint8), np.zeros((2, 3), np.uint8), 1)
