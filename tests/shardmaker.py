"""Small real image shards for tests: coloured shapes on noise, with exact ground truth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np

from auxdist.data.index import Index, load_index, write_index
from auxdist.data.reader import encode_gray, encode_labels
from auxdist.data.shardfile import SampleFacts, write_shard

UNLABELLED_EVERY = 8
"""Samples 7, 15, 23, .. show nothing and have no class."""

_Sample = tuple[str, Mapping[str, bytes], SampleFacts]


def make_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Colours of background and classes."""
    return tuple(
        (37 * label % 256, 91 * label % 256, 151 * label % 256) for label in range(num_classes + 1)
    )


def make_shards(
    root: Path,
    num_samples: int,
    num_shards: int,
    num_classes: int = 3,
    size: tuple[int, int] = (48, 64),
    *,
    seed: int = 0,
    ground_truth: bool = True,
    saliency: bool = True,
) -> Index:
    """Write `num_shards` shards of `num_samples` images of `size` (height, width) under `root`.

    Keys are img-00000, img-00001, ..; every sample but each eighth has one or two classes.
    """
    palette = make_palette(num_classes)
    extensions = ("sal.png",) * saliency + ("gt.png",) * ground_truth
    shards = []
    for shard, numbers in enumerate(np.array_split(np.arange(num_samples), num_shards)):
        samples = (
            _sample(int(n), draw_scene(int(n), num_classes, size, seed), extensions, palette)
            for n in numbers
        )
        shards.append(write_shard(root / f"img-{shard:06d}.tar", samples))
    index = Index(
        root=root,
        split="train",
        classes=tuple(f"class{c}" for c in range(num_classes)),
        palette=palette,
        saliency="drawn" if saliency else "none",
        ground_truth=ground_truth,
        shards=tuple(shards),
        sha256="",
    )
    write_index(index)
    return load_index(root)


def draw_scene(
    number: int, num_classes: int, size: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """(H, W, 3) uint8 image, (H, W) uint8 labels (0, 1..C, 255 at borders) and classes 0..C-1."""
    generator = np.random.Generator(np.random.PCG64([seed, number]))
    height, width = size
    image = generator.integers(60, 120, (height, width, 3), dtype=np.uint8)
    labels = np.zeros(size, dtype=np.uint8)
    for c in _classes(number, num_classes):
        centre = (int(generator.integers(width)), int(generator.integers(height)))
        radius = max(1, min(size) // 4)
        shape = np.zeros(size, dtype=np.uint8)
        cv2.circle(shape, centre, radius, 1, -1)
        labels[shape > 0] = c + 1
        colour = np.asarray(make_palette(num_classes)[c + 1], dtype=np.float32)
        image[shape > 0] = (0.8 * colour + 0.2 * image[shape > 0]).astype(np.uint8)
        cv2.circle(labels, centre, radius, 255, 1)
    present = tuple(c for c in range(num_classes) if (labels == c + 1).any())
    return image, labels, present


def _classes(number: int, num_classes: int) -> tuple[int, ...]:
    if number % UNLABELLED_EVERY == UNLABELLED_EVERY - 1:
        return ()
    first = number % num_classes
    return (first,) if number % 2 else (first, (first + 1) % num_classes)


def _sample(
    number: int,
    scene: tuple[np.ndarray, np.ndarray, tuple[int, ...]],
    extensions: tuple[str, ...],
    palette: tuple[tuple[int, int, int], ...],
) -> _Sample:
    image, labels, classes = scene
    height, width = labels.shape
    mask = np.where(labels > 0, 230, 10).astype(np.uint8)
    content = {
        "jpg": cv2.imencode(".jpg", image[..., ::-1])[1].tobytes(),
        "json": json.dumps({"classes": classes, "width": width, "height": height}).encode(),
        "sal.png": encode_gray(cv2.GaussianBlur(mask, (5, 5), 0)),
        "gt.png": encode_labels(labels, palette),
    }
    chosen = {name: content[name] for name in ("jpg", "json", *extensions)}
    return f"img-{number:05d}", chosen, SampleFacts(width, height, classes)


def keys_in(index: Index) -> Iterator[str]:
    """All keys, in the order of the shards."""
    for shard in range(len(index.shards)):
        yield from (sample.key for sample in index.samples(shard))
