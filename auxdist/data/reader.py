"""Bytes at an offset, and what they decode to. Images stay in stored orientation, as masks do.

H W are the height and width of the image.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from auxdist.data.index import Index, Member, Sample
from auxdist.errors import DataError, unreadable
from auxdist.records import IGNORE

IGNORE_COLOUR = (224, 224, 192)
"""How label 255 looks in a palette PNG (the colour of VOC's borders)."""

_OPEN_FILES = 128
_COLOUR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_GRAY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION


@dataclass(frozen=True)
class SourceSample:
    """An image of a shard as it was given.

    image     (H, W, 3) uint8 RGB
    saliency  (H, W) uint8, the off-the-shelf map, or None where the shard has none
    classes   image-level labels, 0..C-1
    """

    key: str
    image: np.ndarray
    saliency: np.ndarray | None
    classes: tuple[int, ...]


def read_sample(index: Index, shard: int, sample: Sample) -> SourceSample:
    """Read and decode a sample without its ground truth.

    Raises:
        DataError: a member is missing, damaged or of another size than the table says.
    """
    image = read_image(index, shard, sample)
    saliency = None
    if "sal.png" in sample.members:
        content = _member(index, shard, sample, "sal.png")
        saliency = decode_gray(content, f"{sample.key}.sal.png")
        check_size(saliency, image.shape[:2], f"{sample.key}.sal.png")
    return SourceSample(sample.key, image, saliency, sample.classes)


def read_image(index: Index, shard: int, sample: Sample) -> np.ndarray:
    """(H, W, 3) uint8 RGB image of a sample.

    Raises:
        DataError: as for `read_sample`.
    """
    image = decode_image(_member(index, shard, sample, "jpg"), f"{sample.key}.jpg")
    check_size(image, (sample.height, sample.width), f"{sample.key}.jpg")
    return image


def read_ground_truth(index: Index, shard: int, sample: Sample) -> np.ndarray:
    """(H, W) uint8 true labels of a sample. For measuring only: nothing that learns calls this.

    Raises:
        DataError: as for `read_sample`.
    """
    content = _member(index, shard, sample, "gt.png")
    truth = decode_labels(content, f"{sample.key}.gt.png")
    check_size(truth, (sample.height, sample.width), f"{sample.key}.gt.png")
    return truth


def read_member(tar: Path, member: Member) -> bytes:
    """The bytes of one member. Shards are immutable: opened files are kept and read again.

    Raises:
        DataError: the tar cannot be read or ends too early.
        NodeFault: its file system does not answer.
    """
    try:
        descriptor = _opened(tar).descriptor
        content = os.pread(descriptor, member.size, member.offset)
        while (missing := member.size - len(content)) > 0:
            more = os.pread(descriptor, missing, member.offset + len(content))
            if not more:
                break
            content += more
    except OSError as error:
        raise unreadable(tar, error, "copy it anew") from error
    if len(content) != member.size:
        raise DataError(
            f"{tar}: ends within the {member.size} bytes at offset {member.offset}; the file was "
            "cut short, copy it anew."
        )
    return content


def decode_image(content: bytes, name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a JPEG (colour, gray or CMYK), not turned by its EXIF orientation.

    Raises:
        DataError: the bytes are damaged; `name` says whose they are.
    """
    return _decode(content, _COLOUR, name)


def decode_gray(content: bytes, name: str) -> np.ndarray:
    """(H, W) uint8 of an 8-bit gray PNG.

    Raises:
        DataError: as for `decode_image`.
    """
    return _decode(content, _GRAY, name)


def decode_labels(content: bytes, name: str) -> np.ndarray:
    """(H, W) uint8 label indices of a palette (or 8-bit gray) PNG; the colours play no part.

    Raises:
        DataError: the bytes are damaged or the image is in true colour.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as png:
            # Pillow stretches gray of less than 8 bits, and classes would become others.
            if png.mode not in ("P", "L") or png.tile[0][3] in ("L;2", "L;4"):
                raise DataError(
                    f"{name}: labels are a palette or 8-bit gray PNG, this one is {png.mode}; "
                    "convert it to class indices."
                )
            return np.array(png, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise DataError(f"{name}: is not a readable PNG ({error}).") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: is too large to be decoded ({error}).") from error


def encode_labels(labels: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> bytes:
    """Palette PNG of (H, W) uint8 labels; `palette` gives the colours of 0, 1, .., C."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[IGNORE] = IGNORE_COLOUR
    colours[: len(palette)] = palette
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    image.putpalette(colours.tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def encode_gray(values: np.ndarray) -> bytes:
    """8-bit gray PNG of (H, W) uint8 values."""
    return cv2.imencode(".png", np.ascontiguousarray(values, dtype=np.uint8))[1].tobytes()


def check_size(values: np.ndarray, expected: Sequence[int], name: str) -> None:
    """Refuse an array whose height and width are not those `expected`.

    Raises:
        DataError: the sizes differ.
    """
    if values.shape[:2] != tuple(expected):
        (height, width), (found_height, found_width) = expected, values.shape[:2]
        raise DataError(
            f"{name}: is {found_width}x{found_height} pixels, {width}x{height} expected; build "
            "the shard anew."
        )


def _member(index: Index, shard: int, sample: Sample, extension: str) -> bytes:
    tar = index.root / index.shards[shard].file
    if extension not in sample.members:
        raise DataError(f"{tar}: sample {sample.key} has no {extension}; build the shards with it.")
    return read_member(tar, sample.members[extension])


def _decode(content: bytes, flags: int, name: str) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    except cv2.error as error:  # raised for empty buffers and absurd sizes
        raise DataError(f"{name}: cannot be decoded ({error.err}).") from error
    if image is None:
        raise DataError(f"{name}: {len(content)} bytes that are no readable image.")
    return image


class _OpenFile:
    """A descriptor that lives as long as somebody uses it, even once the cache let go of it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(maxsize=_OPEN_FILES)
def _opened(path: Path) -> _OpenFile:
    return _OpenFile(path)
