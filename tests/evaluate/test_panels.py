"""The picture of examples has a row an image and a column a round."""

from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from shardmaker import make_shards
from smallrun import do_tasks, make_data, small_config

from auxdist.data.index import load_index
from auxdist.evaluate.panels import GAP, HEADER, NUM_IMAGES, TILE, _chosen, save_panels
from auxdist.labels.store import open_labels
from auxdist.runfolder import RunFolder
from auxdist.world import World


@pytest.mark.parametrize(("ground_truth", "columns"), [(True, 5), (False, 4)])
def test_rows_are_images_and_columns_their_maps(
    tmp_path: Path, ground_truth: bool, columns: int
) -> None:
    make_data(tmp_path, ground_truth=ground_truth)
    run = RunFolder(tmp_path / "run")
    do_tasks(run, small_config(tmp_path), World(), ("train classifier", "labels round-00"))
    index = load_index(tmp_path / "train")
    path = tmp_path / "examples.png"
    save_panels(path, index, [open_labels(run.labels(0), index)])
    picture = cv2.imread(str(path))
    assert picture is not None
    side = TILE + GAP
    assert picture.shape == (HEADER + NUM_IMAGES * side, columns * side, 3)
    image_row = picture[HEADER : HEADER + side, :side]
    assert image_row[: TILE // 2, : TILE // 2].std() > 5  # a photograph, not an empty square


def test_examples_are_spread_over_all_shards(tmp_path: Path) -> None:
    for num_shards, expected in ((15, [0, 2, 4, 6, 8, 10, 12, 14]), (3, [0, 0, 1, 1, 1, 1, 2, 2])):
        index = make_shards(tmp_path / str(num_shards), 60, num_shards)
        assert [shard for shard, _ in _chosen(index, ())] == expected


def test_an_image_that_could_not_be_read_is_no_example(tmp_path: Path) -> None:
    make_data(tmp_path)
    run = RunFolder(tmp_path / "run")
    do_tasks(run, small_config(tmp_path), World(), ("train classifier", "labels round-00"))
    index = load_index(tmp_path / "train")
    labels = open_labels(run.labels(0), index)
    bad = {sample.key: "damaged" for sample in index.samples(0)}
    labels = replace(labels, manifest=replace(labels.manifest, quarantined=bad))
    save_panels(tmp_path / "examples.png", index, [labels])
    picture = cv2.imread(str(tmp_path / "examples.png"))
    assert picture is not None
    assert len(picture) == HEADER + (NUM_IMAGES - NUM_IMAGES // 4) * (TILE + GAP)
