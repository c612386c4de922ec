"""The same few training images through all rounds of labels, as one picture for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from auxdist.data.index import Index, Sample
from auxdist.data.reader import IGNORE_COLOUR, read_ground_truth, read_image
from auxdist.evaluate.pictures import Palette
from auxdist.labels.store import LabelSet
from auxdist.records import IGNORE
from auxdist.runfolder import atomic_file

NUM_IMAGES = 8
TILE = 160
"""Side of the square that each image is fitted into, in pixels."""
HEADER = 24
GAP = 4


def save_panels(path: Path, index: Index, rounds: Sequence[LabelSet]) -> None:
    """Write a picture: a row an image; columns image, saliency, CAM only, labels by round, truth.

    The images are spread evenly over the shards; ignored pixels are pale. Only round 0 has
    labels by the CAM alone. The truth is a column where the shards have it.

    Raises:
        DataError: an image or its labels cannot be read.
    """
    bad = {key for labels in rounds for key in labels.manifest.quarantined}
    chosen = _chosen(index, bad)
    rows = [tile_row(_tiles(index, rounds, shard, sample)) for shard, sample in chosen]
    titles = ["image", "saliency", "CAM only", *(f"round {n}" for n in range(len(rounds)))]
    titles += ["truth"] * index.ground_truth
    picture = np.concatenate([title_row(titles), *rows])
    with atomic_file(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())


def _chosen(index: Index, bad: Collection[str]) -> Iterator[tuple[int, Sample]]:
    """The first images with a class of evenly spread shards, or more of each if they are few."""
    places = np.linspace(0, len(index.shards) - 1, NUM_IMAGES).round().astype(int).tolist()
    for shard, number in Counter(places).items():
        labelled = [s for s in index.samples(shard) if s.classes and s.key not in bad]
        for sample in labelled[:number]:
            yield shard, sample


def _tiles(
    index: Index, rounds: Sequence[LabelSet], shard: int, sample: Sample
) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 RGB pictures of an image, one for each column."""
    yield read_image(index, shard, sample)
    _, saliency = rounds[0].read(shard, sample.key)  # the off-the-shelf map, as it was given
    yield np.repeat(saliency[..., None], 3, axis=2)
    yield coloured(rounds[0].read_labels(shard, sample.key, "cam.png"), index.palette)
    for labels in rounds:
        yield coloured(labels.read_labels(shard, sample.key, "seg.png"), index.palette)
    if index.ground_truth:
        yield coloured(read_ground_truth(index, shard, sample), index.palette)


def coloured(labels: np.ndarray, palette: Palette) -> np.ndarray:
    """(H, W) uint8 labels -> (H, W, 3); ignored pixels are pale."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    colours[IGNORE] = IGNORE_COLOUR
    return colours[labels]


def tile_row(tiles: Iterator[np.ndarray]) -> np.ndarray:
    """Tiles fitted into squares, side by side: (TILE + GAP, columns * (TILE + GAP), 3)."""
    return np.concatenate([_fitted(tile) for tile in tiles], axis=1)


def _fitted(tile: np.ndarray) -> np.ndarray:
    height, width = tile.shape[:2]
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(tile, size, interpolation=cv2.INTER_NEAREST)
    square = np.full((TILE + GAP, TILE + GAP, 3), 255, np.uint8)
    square[: size[1], : size[0]] = small
    return square


def title_row(titles: Sequence[str]) -> np.ndarray:
    """A strip with a title above each tile: (HEADER, columns * (TILE + GAP), 3)."""
    strip = np.full((HEADER, len(titles) * (TILE + GAP), 3), 255, np.uint8)
    for number, title in enumerate(titles):
        place = (number * (TILE + GAP), HEADER - 8)
        cv2.putText(
            strip, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA
        )
    return strip
