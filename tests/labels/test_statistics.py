"""What labels add up to, against counting pixel by pixel."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from auxdist.labels.statistics import Agreement, Changes, Mixture, Statistics, Totals

NUM_CLASSES = 3
VALUES = np.array([0, 1, 2, 3, 255], dtype=np.uint8)


def random_labels(seed: int) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(seed))
    return VALUES[generator.integers(0, 5, (17, 23))]


def test_changes_equal_counting_pixel_by_pixel() -> None:
    before, after = random_labels(0), random_labels(1)
    lost, gained, order = [0] * 5, [0] * 5, VALUES.tolist()
    for old, new in zip(before.ravel().tolist(), after.ravel().tolist(), strict=True):
        if old != new:
            lost[order.index(old)] += 1
            gained[order.index(new)] += 1
    found = Changes.of(before, after, NUM_CLASSES)
    assert (found.pixels, found.lost, found.gained) == (17 * 23, tuple(lost), tuple(gained))
    assert found.changed == (before != after).sum() == sum(gained)
    assert found.share == (before != after).mean()
    assert Changes.of(before, before, NUM_CLASSES).changed == 0


def statistics(seed: int) -> Statistics:
    labels = random_labels(seed)
    return Statistics(
        Totals.of(labels, NUM_CLASSES),
        Changes.of(random_labels(seed + 1), labels, NUM_CLASSES),
        Agreement(1, 2, 3, seed),
        Mixture.of(0.5 + seed / 100, 0.25),
        not_finite=1,
    )


def test_sum_has_every_part() -> None:
    total = statistics(0) + statistics(1)
    for name in ("pixels", "background", "ignore"):
        parts = [getattr(statistics(seed).totals, name) for seed in (0, 1)]
        assert getattr(total.totals, name) == sum(parts)
    assert sum((*total.totals.classes, total.totals.background, total.totals.ignore)) == 2 * 17 * 23
    assert total.changes.pixels == 2 * 17 * 23
    assert total.agreement == Agreement(2, 4, 6, 1)
    assert total.not_finite == 2
    assert Statistics.none(NUM_CLASSES) + statistics(0) == statistics(0)


def test_mixture_is_mean_and_deviation_over_all_images() -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    images = [generator.normal(0.5, 0.01, 100) + n / 50 for n in range(3)]
    total = Mixture()
    for values in images:
        total += Mixture.of(float(values.mean()), float(values.std()))
    together = np.concatenate(images)
    assert total.mean == pytest.approx(together.mean(), rel=1e-12)
    assert total.std == pytest.approx(together.std(), rel=1e-9)


def test_json_keeps_everything() -> None:
    value = statistics(2)
    assert Statistics.from_json(json.loads(json.dumps(asdict(value)))) == value


def test_summary_of_nothing_has_no_nan() -> None:
    nothing = Statistics.none(NUM_CLASSES)
    assert math.isnan(nothing.mixture.mean)
    assert math.isnan(nothing.mixture.std)
    text = json.dumps(nothing.summary(), allow_nan=False)
    assert json.loads(text)["changed"] is None
    assert json.loads(json.dumps(statistics(0).summary()))["agreement"] == 1 / 6
