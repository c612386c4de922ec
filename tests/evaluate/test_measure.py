"""Measuring over ranks: every image once, integers only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from labelmaker import PlainLabels, damage_image, make_round, tiny_net
from ranks import run_ranks
from shardmaker import make_shards

from auxdist.data.index import Index, load_index
from auxdist.data.reader import read_ground_truth, read_image
from auxdist.errors import DataError, Stopped
from auxdist.evaluate import measure as measure_module
from auxdist.evaluate.confusion import Measurement
from auxdist.evaluate.measure import measure_labels, measure_predictions
from auxdist.evaluate.predict import predict
from auxdist.labels.store import LabelMember, LabelSet, open_labels
from auxdist.runfolder import RunFolder
from auxdist.world import World


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_shards(tmp_path_factory.mktemp("val"), num_samples=7, num_shards=2, size=(30, 41))


@pytest.fixture(scope="module")
def labels(index: Index, tmp_path_factory: pytest.TempPathFactory) -> LabelSet:
    run = RunFolder(tmp_path_factory.mktemp("run"))
    make_round(run, index, PlainLabels())
    return open_labels(run.labels(0), index)


def no_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    "too_much",
    [
        no_gpu_memory,
        lambda: torch.empty(10**15),
        lambda: np.empty(10**15),
        lambda: cv2.resize(np.zeros((1, 1, 4)), (2**24, 2**24)),
    ],
)
def test_an_image_too_large_for_memory_is_named(
    index: Index, monkeypatch: pytest.MonkeyPatch, too_much: Callable[[], object]
) -> None:
    def full(*_: object) -> None:
        too_much()

    monkeypatch.setattr(measure_module, "predict", full)
    with pytest.raises(DataError, match=r"\(41x30 pixels\): does not fit .*evaluate\.window=640"):
        measure_predictions(tiny_net(), index, World())


def naive(index: Index) -> list[list[int]]:
    """The matrix of the predictions, pixel by pixel."""
    net, matrix = tiny_net(), [[0] * 5 for _ in range(4)]
    for shard in range(len(index.shards)):
        for sample in index.samples(shard):
            truth = read_ground_truth(index, shard, sample)
            predicted = predict(net, read_image(index, shard, sample), "cpu")
            for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
                if t != 255:
                    matrix[t][p] += 1
    return matrix


def measured(world: World, root: Path, labels: LabelSet, damaged: Path) -> dict[str, Any]:
    """What the ranks of a world find together."""
    net, text = tiny_net(), ""
    try:
        measure_predictions(net, load_index(damaged), world)
    except DataError as error:
        text = str(error)
    return {
        "predictions": measure_predictions(net, load_index(root), world).as_json(),
        "labels": measure_labels(labels, "seg.png", world).as_json(),
        "damaged": text,
    }


def test_miou_is_exactly_equal_on_one_two_and_three_ranks(
    index: Index, labels: LabelSet, tmp_path: Path
) -> None:
    damaged = make_shards(tmp_path, num_samples=7, num_shards=2, size=(30, 41))
    key = damage_image(damaged, 1, 0)
    one = measured(World(), index.root, labels, tmp_path)
    assert one["predictions"]["matrix"] == naive(index)
    for size in (2, 3):
        results = run_ranks(size, measured, index.root, labels, tmp_path)
        for result in results:
            assert result["predictions"] == one["predictions"]
            assert result["labels"] == one["labels"]
        texts = [result["damaged"] for result in results]
        assert sum(key in text for text in texts) == 1
        assert sum("another rank met bad data" in text for text in texts) == size - 1


def test_labels_are_measured_against_their_own_truth(index: Index, labels: LabelSet) -> None:
    members: tuple[tuple[LabelMember, bool], ...] = (("seg.png", False), ("cam.png", True))
    for member, is_covered in members:
        found = measure_labels(labels, member, World())
        expected = Measurement.none(3)
        for shard in range(2):
            for sample in index.samples(shard):
                truth = read_ground_truth(index, shard, sample)
                seen = labels.read_labels(shard, sample.key, member)
                expected += Measurement.of(truth, seen, 3)
        assert (found.matrix == expected.matrix).all()
        assert (found.coverage == 1) == is_covered


def test_image_that_is_left_out_is_noticed(
    index: Index, labels: LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(measure_module._share(index, World()))
    monkeypatch.setattr(measure_module, "_share", lambda *_: whole[:-1])
    with pytest.raises(DataError, match=r"measured 6 images with 7380 .* split has 7 with 8610;"):
        measure_labels(labels, "seg.png", World())


def test_image_that_is_counted_twice_is_noticed(
    index: Index, labels: LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(measure_module._share(index, World()))
    monkeypatch.setattr(measure_module, "_share", lambda *_: [*whole, whole[0]])
    with pytest.raises(DataError, match=r"measured 8 images with 9840 .* split has 7 with 8610;"):
        measure_labels(labels, "seg.png", World())


def test_label_out_of_range_names_the_image(index: Index, labels: LabelSet) -> None:
    with pytest.raises(DataError, match="img-00000: prediction has the label 9"):
        measure_module._of_one(
            index.samples(0)[0], np.zeros((2, 2), np.uint8), np.full((2, 2), 9, np.uint8), 3
        )


def test_shards_without_ground_truth_are_refused(tmp_path: Path) -> None:
    index = make_shards(tmp_path, 2, 1, ground_truth=False)
    with pytest.raises(DataError, match=r"has no ground truth"):
        measure_predictions(tiny_net(), index, World())


def test_stop_ends_measuring(index: Index, labels: LabelSet) -> None:
    with pytest.raises(Stopped, match="measuring was stopped; run again to measure anew"):
        measure_labels(labels, "seg.png", World(), stop=lambda: True)
