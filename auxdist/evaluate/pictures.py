"""Predictions as pictures: palette PNGs and overlays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from auxdist.data.reader import IGNORE_COLOUR, encode_labels
from auxdist.records import IGNORE
from auxdist.runfolder import atomic_file

Palette = Sequence[tuple[int, int, int]]
_JPEG_SIDE = 65_500


def draw_overlay(
    image: np.ndarray, labels: np.ndarray, palette: Palette, strength: float = 0.6
) -> np.ndarray:
    """The image with its objects tinted and outlined.

    Args:
        image: (H, W, 3) uint8 RGB
        labels: (H, W) uint8: 0 background (left as it is), 1..C, 255 ignore
        palette: colours of 0..C
        strength: share of the colour in a tinted pixel

    Returns:
        (H, W, 3) uint8 RGB
    """
    colours = np.zeros((256, 3), dtype=np.float32)
    colours[: len(palette)] = palette
    colours[IGNORE] = IGNORE_COLOUR
    picture = image.copy()
    is_object = labels > 0
    tinted = (1 - strength) * image[is_object] + strength * colours[labels[is_object]]
    picture[is_object] = tinted.round().astype(np.uint8)
    picture[_outlines(labels)] = 255
    return picture


def prediction_files(folder: Path, name: str) -> tuple[Path, Path]:
    """The files that `save_prediction` writes: labels, and overlay."""
    return folder / f"{name}.png", folder / f"{name}.overlay.jpg"


def save_prediction(
    folder: Path, name: str, image: np.ndarray, labels: np.ndarray, palette: Palette
) -> tuple[Path, Path]:
    """Write `name`.png, a palette PNG of the labels, and `name`.overlay.jpg; both paths.

    The overlay is smaller than the image where a side is longer than JPEG takes.
    """
    picture = draw_overlay(image, labels, palette)
    if (longest := max(picture.shape)) > _JPEG_SIDE:
        size = [max(1, side * _JPEG_SIDE // longest) for side in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    mask, overlay = prediction_files(folder, name)
    jpeg = cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes()
    for path, content in ((mask, encode_labels(labels, palette)), (overlay, jpeg)):
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
    return mask, overlay


def _outlines(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels of an object whose right or lower neighbour has another label."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge & (labels > 0)
