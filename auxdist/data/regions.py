"""Regions of COCO annotations as pixels: polygons and both kinds of run-length code.

Legend: H W image. Polygon coordinates are continuous: pixel (x, y) covers [x, x+1] x [y, y+1], and
belongs to a polygon when its centre does.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from auxdist.errors import DataError

_FINE = 5
"""Polygons are filled on a grid so many times finer, for OpenCV also fills the pixels of the edge;
odd, so that every pixel has a centre."""


def region_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(H, W) bool pixels of an annotation's `segmentation`: polygons, or a run-length code.

    Raises:
        DataError: it is neither, or does not fit the image.
    """
    if isinstance(segmentation, dict):
        return decode_runs(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError("a segmentation is a list of polygons or a run-length code")
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        _fill(mask, polygon)
    return mask


def _fill(mask: np.ndarray, polygon: Any) -> None:
    """Set the pixels whose centre lies inside a polygon [x0, y0, x1, y1, ..]."""
    try:
        corners = np.asarray(polygon, np.float64).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise DataError("a polygon is a list of numbers x0, y0, x1, y1, ..") from error
    if len(corners) < 3 or not np.isfinite(corners).all():
        raise DataError(f"a polygon has three or more corners, all finite; this has {len(corners)}")
    height, width = mask.shape
    corners = np.clip(corners, -1e6, 1e6)  # far outside still fits into OpenCV's numbers
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, (width, height))
    if right <= left or bottom <= top:
        return
    fine = np.zeros(((bottom - top) * _FINE, (right - left) * _FINE), np.uint8)
    points = (corners - (left, top)) * _FINE - 0.5  # OpenCV counts from the centre of a pixel
    cv2.fillPoly(fine, [np.round(points * 16).astype(np.int32)], 1, shift=4)
    mask[top:bottom, left:right] |= fine[_FINE // 2 :: _FINE, _FINE // 2 :: _FINE] > 0


def decode_runs(code: dict[str, Any], height: int, width: int) -> np.ndarray:
    """(H, W) bool pixels of {"counts": numbers or text, "size": [H, W]}.

    The counts are lengths of runs of 0, 1, 0, .. down the columns.

    Raises:
        DataError: the size is not the image's, or the runs do not fill it.
    """
    size, counts = code.get("size"), code.get("counts")
    if size != [height, width]:
        raise DataError(f"a run-length code is of size {size}, its image of {[height, width]}")
    if isinstance(counts, str):
        counts = decode_counts(counts)
    if not isinstance(counts, list) or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise DataError("a run-length code has counts of 0 or more, or their compressed text")
    if sum(counts) != height * width:
        raise DataError(f"a run-length code fills {sum(counts)} of {height * width} pixels")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def decode_counts(text: str) -> list[int]:
    """Run lengths of COCO's compressed text.

    Each number is written in groups of 5 bits, lowest first, as characters from "0" on; bit 5 says
    that more follow, bit 4 of the last group is the sign. From the fourth number on, it is the
    difference to the number two places before.

    Raises:
        DataError: other characters, or an unfinished number.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise DataError(f"a run-length code holds the character {character!r}")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise DataError("a run-length code ends within a number")
    return counts
