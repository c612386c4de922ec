"""Predictions as pictures."""

from pathlib import Path

import numpy as np

from auxdist.data.reader import decode_image, decode_labels
from auxdist.evaluate.pictures import draw_overlay, save_prediction

PALETTE = ((0, 0, 0), (200, 0, 0), (0, 200, 0))
IMAGE = np.full((20, 30, 3), 100, dtype=np.uint8)
LABELS = np.zeros((20, 30), dtype=np.uint8)
LABELS[5:15, 5:15] = 2


def test_overlay_tints_objects_and_leaves_the_background() -> None:
    picture = draw_overlay(IMAGE, LABELS, PALETTE, strength=0.5)
    assert picture[0, 0].tolist() == [100, 100, 100]
    assert picture[8, 8].tolist() == [50, 150, 50]
    assert picture[14, 10].tolist() == [255, 255, 255], "the outline"
    assert (IMAGE == 100).all(), "the image itself is not drawn on"


def test_mask_and_overlay_are_saved(tmp_path: Path) -> None:
    mask, overlay = save_prediction(tmp_path, "cat", IMAGE, LABELS, PALETTE)
    assert (mask.name, overlay.name) == ("cat.png", "cat.overlay.jpg")
    assert (decode_labels(mask.read_bytes(), "cat") == LABELS).all()
    assert decode_image(overlay.read_bytes(), "cat").shape == IMAGE.shape


def test_an_overlay_is_no_longer_than_jpeg_takes(tmp_path: Path) -> None:
    image = np.full((4, 70_000, 3), 100, np.uint8)
    labels = np.zeros(image.shape[:2], np.uint8)
    mask, overlay = save_prediction(tmp_path, "wide", image, labels, PALETTE)
    assert decode_labels(mask.read_bytes(), "wide").shape == labels.shape
    assert decode_image(overlay.read_bytes(), "wide").shape == (3, 65_500, 3)
