"""Measuring over all ranks: every image exactly once, and only integers are summed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from auxdist.data.index import Index, Sample
from auxdist.data.reader import read_ground_truth, read_image
from auxdist.errors import DataError, Stopped
from auxdist.evaluate.confusion import Measurement
from auxdist.evaluate.predict import SINGLE_SCALE, Inference, predict
from auxdist.labels.store import LabelMember, LabelSet
from auxdist.memory import within_memory
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.records import IGNORE
from auxdist.world import World

TOO_LARGE = (
    "set evaluate.window, e.g. --set evaluate.window=640, and where it is the CRF, which sees all "
    "of the image, evaluate.crf=false"
)
"""What helps where an image does not fit into memory."""


def measure_predictions(
    net: AuxSegNet,
    index: Index,
    world: World,
    stop: Callable[[], bool] = lambda: False,
    inference: Inference = SINGLE_SCALE,
) -> Measurement:
    """Predictions of `net` (in eval mode, on the device of `world`) against the ground truth.

    Raises:
        DataError: on every rank, where an image or its ground truth cannot be read.
        Stopped: `stop` became true; nothing is kept.
    """

    def predicted(shard: int, sample: Sample) -> np.ndarray:
        image = read_image(index, shard, sample)
        look = partial(predict, net, image, world.device, inference)
        return within_memory(look, sample.key, image.shape, TOO_LARGE)

    return _measure(index, world, predicted, partial(read_ground_truth, index), stop)


def measure_labels(
    labels: LabelSet,
    member: LabelMember,
    world: World,
    stop: Callable[[], bool] = lambda: False,
) -> Measurement:
    """Pseudo labels against the ground truth of their images.

    `member` is "seg.png", or "cam.png" for what the CAMs alone gave in round 0. Ignored pixels
    count as missed; an image that was left out when the labels were made, and whose truth cannot
    be read either, counts as void.

    Raises:
        DataError, Stopped: as for `measure_predictions`.
    """

    def predicted(shard: int, sample: Sample) -> np.ndarray:
        return labels.read_labels(shard, sample.key, member)

    def truth(shard: int, sample: Sample) -> np.ndarray:
        try:
            return read_ground_truth(labels.index, shard, sample)
        except DataError:
            if sample.key not in labels.manifest.quarantined:
                raise
            return np.full((sample.height, sample.width), IGNORE, np.uint8)

    return _measure(labels.index, world, predicted, truth, stop)


def require_ground_truth(index: Index) -> None:
    """Return if there is something to measure against.

    Raises:
        DataError: there is not.
    """
    if not index.ground_truth:
        raise DataError(
            f"{index.root}: has no ground truth (gt.png) to measure against; build the shards with "
            "masks, or measure another split."
        )


def _measure(
    index: Index,
    world: World,
    predicted: Callable[[int, Sample], np.ndarray],
    truth: Callable[[int, Sample], np.ndarray],
    stop: Callable[[], bool],
) -> Measurement:
    require_ground_truth(index)
    num_classes = len(index.classes)
    mine, is_stopped = Measurement.none(num_classes), False
    with world.failing_together():
        for shard, sample in _share(index, world):
            if is_stopped := stop():
                break
            mine += _of_one(sample, truth(shard, sample), predicted(shard, sample), num_classes)
            world.tick()
    if world.any(is_stopped):
        raise Stopped("measuring was stopped; run again to measure anew.")
    total = _sum(mine, world)
    _check_complete(total, index)
    return total


def _share(index: Index, world: World) -> Iterator[tuple[int, Sample]]:
    """Every `world.size`-th sample of the split, from number `world.rank` on."""
    first = 0
    for shard, entry in enumerate(index.shards):
        for number, sample in enumerate(index.samples(shard), start=first):
            if number % world.size == world.rank:
                yield shard, sample
        first += entry.num_samples


def _of_one(
    sample: Sample, truth: np.ndarray, predicted: np.ndarray, num_classes: int
) -> Measurement:
    try:
        return Measurement.of(truth, predicted, num_classes)
    except DataError as error:
        raise DataError(f"{sample.key}: {error}") from error


def _sum(mine: Measurement, world: World) -> Measurement:
    numbers = np.asarray([mine.void_pixels, mine.num_images], dtype=np.int64)
    flat = np.concatenate([mine.matrix.ravel(), numbers])
    *matrix, void, images = world.all_sum(torch.from_numpy(flat)).tolist()
    summed = np.asarray(matrix, dtype=np.int64).reshape(mine.matrix.shape)
    return Measurement(summed, void, images)


def _check_complete(total: Measurement, index: Index) -> None:
    tables = (index.samples(shard) for shard in range(len(index.shards)))
    pixels = sum(sample.width * sample.height for table in tables for sample in table)
    if (total.num_images, total.pixels) != (index.num_samples, pixels):
        raise DataError(
            f"{index.root}: measured {total.num_images} images with {total.pixels} pixels, but the "
            f"split has {index.num_samples} with {pixels}; do all ranks see the same shards?"
        )
