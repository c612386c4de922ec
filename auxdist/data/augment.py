"""Augmentation of a training sample (method.md 2.6): resize, crop, flip, pad. All in uint8.

H W source image, H' W' after the resize, S side of the crop, h w the part of it that is image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from auxdist.config import CropConfig
from auxdist.data.keys import generator
from auxdist.records import IGNORE


@dataclass(frozen=True)
class Draw:
    """The random part of an augmentation. top, left in [0, 1) place the crop in what there is."""

    scale: float
    flipped: bool
    top: float
    left: float


@dataclass(frozen=True)
class Crop:
    """A training sample; what lies outside `extent` (right and bottom) is padding.

    image         (3, S, S) uint8, padding 0
    segmentation  (S, S) uint8: 0 background, 1..C, 255 ignore
    saliency      (S, S) uint8: 0, 1, 255 ignore
    extent        (h, w)
    """

    image: np.ndarray
    segmentation: np.ndarray
    saliency: np.ndarray
    extent: tuple[int, int]


def draw_batch_scale(seed: int, round: int, epoch: int, step: int, crop: CropConfig) -> float:
    """The scale that all samples of a global batch share."""
    return _scale(generator(seed, round, epoch, "scale", step).random(), crop)


def draw_sample(
    seed: int, round: int, epoch: int, key: str, *, crop: CropConfig, batch_scale: float
) -> Draw:
    """The augmentation of a sample: a function of these values and nothing else."""
    # All four are always drawn, so that no switch changes what the others get.
    scale, flip, top, left = generator(seed, round, epoch, "augment", key).random(4).tolist()
    return Draw(
        scale=batch_scale if crop.scale_per == "batch" else _scale(scale, crop),
        flipped=flip < crop.flip_probability,
        top=top,
        left=left,
    )


def augment(
    image: np.ndarray, labels: tuple[np.ndarray, np.ndarray] | None, draw: Draw, crop: CropConfig
) -> Crop:
    """Resize by draw.scale, cut S x S out, flip, pad on the right and at the bottom.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W) uint8 segmentation and (H, W) uint8 saliency map 0..255, which becomes
            1 above one half; None: both come out as 255 everywhere.
        draw: the random part.
        crop: the switches.
    """
    box = _Box.of(image.shape[0], image.shape[1], draw, crop.size)
    pixels = np.zeros((3, crop.size, crop.size), dtype=np.uint8)
    content = box.cut(image, cv2.INTER_LINEAR)  # (h, w, 3)
    pixels[:, : box.height, : box.width] = content.transpose(2, 0, 1)
    padding = IGNORE if labels is None else crop.pad_label
    segmentation, saliency = np.full((2, crop.size, crop.size), padding, dtype=np.uint8)
    if labels is not None:
        # Nearest by pixel centres, as the bilinear resize of the image: plain INTER_NEAREST is
        # shifted by half a pixel against it and does not commute with a flip.
        content = box.cut(labels[0], cv2.INTER_NEAREST_EXACT)
        segmentation[: box.height, : box.width] = content
        content = box.cut(labels[1], cv2.INTER_LINEAR)
        saliency[: box.height, : box.width] = content > 127  # map / 255 > 0.5
    return Crop(pixels, segmentation, saliency, (box.height, box.width))


def resized(length: int, scale: float) -> int:
    """Pixels of a side after the resize: rounded half up, at least 1."""
    return max(1, int(length * scale + 0.5))


def rescale(image: np.ndarray, scale: float) -> np.ndarray:
    """(H, W, 3) uint8 -> (H', W', 3), bilinear; the same array where the size stays."""
    height, width = (resized(side, scale) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


@dataclass(frozen=True)
class _Box:
    """Where the crop lies: height x width from top, left of an image of size `full` (H', W')."""

    full: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    flipped: bool

    @classmethod
    def of(cls, height: int, width: int, draw: Draw, side: int) -> _Box:
        full = (resized(height, draw.scale), resized(width, draw.scale))
        h, w = (min(length, side) for length in full)
        top = int(draw.top * (full[0] - h + 1))
        left = int(draw.left * (full[1] - w + 1))
        return cls(full, top, left, h, w, draw.flipped)

    def cut(self, values: np.ndarray, interpolation: int) -> np.ndarray:
        """(H, W, ...) -> (h, w, ...)."""
        if values.shape[:2] != self.full:
            values = cv2.resize(values, self.full[::-1], interpolation=interpolation)
        values = values[self.top : self.top + self.height, self.left : self.left + self.width]
        return cv2.flip(values, 1) if self.flipped else values


def _scale(uniform: float, crop: CropConfig) -> float:
    return crop.scale_min + uniform * (crop.scale_max - crop.scale_min)
