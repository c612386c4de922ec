"""Photographs and masks as files: read, checked, and as items of a build."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import cv2
import numpy as np

from auxdist.data.reader import decode_image, decode_labels
from auxdist.data.recipe import RawSample
from auxdist.errors import DataError
from auxdist.records import IGNORE

PNG_TO_JPEG_QUALITY = 95


@dataclass(frozen=True)
class PhotoItem:
    """An image file, with image-level labels from one of three places.

    labels      "list": they are `classes`, None where the list lacks this image; "xml": they are
                in the VOC file `annotation`; "mask": they are what `mask` shows
    names       class names, to read `annotation` by
    keep_truth  whether `mask` is also kept as ground truth
    """

    key: str
    image: Path
    num_bytes: int
    labels: Literal["list", "xml", "mask"]
    names: tuple[str, ...]
    classes: tuple[int, ...] | None = None
    annotation: Path | None = None
    mask: Path | None = None
    keep_truth: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The image, and its annotation and mask where it has them."""
        return tuple(path for path in (self.image, self.annotation, self.mask) if path is not None)

    def read(self) -> RawSample:
        """Read the files.

        Raises:
            DataError: a file is missing or damaged, the mask has another size, there is no label.
        """
        jpeg, pixels = read_photo(self.image)
        truth = None
        if self.mask is not None and (self.keep_truth or self.labels == "mask"):
            truth = read_mask(self.mask, pixels)
        return RawSample(jpeg, pixels, self._classes(truth), truth if self.keep_truth else None)

    def _classes(self, truth: np.ndarray | None) -> tuple[int, ...]:
        if self.labels == "xml" and self.annotation is not None:
            return read_annotation(self.annotation, self.names)
        if self.labels == "mask" and truth is not None:
            return classes_in(truth)
        if self.classes is None:
            raise DataError(
                f"{self.key}: the file of labels has none for it; add it, or [] for none."
            )
        return self.classes


def read_photo(path: Path) -> tuple[bytes, np.ndarray]:
    """The JPEG bytes of an image file and its pixels (H, W, 3) uint8 RGB.

    JPEG bytes are kept as they are. A PNG is encoded once, at quality 95, without its alpha.

    Raises:
        DataError: the file is missing, damaged, cut short, or neither JPEG nor PNG.
    """
    content = read_file(path, "image")
    if content.startswith(b"\x89PNG"):
        pixels = decode_image(content, str(path))
        quality = [cv2.IMWRITE_JPEG_QUALITY, PNG_TO_JPEG_QUALITY]
        content = cv2.imencode(".jpg", pixels[..., ::-1], quality)[1].tobytes()
    elif not content.startswith(b"\xff\xd8"):
        raise DataError(f"{path}: is neither a JPEG nor a PNG; convert it.")
    _check_whole(content, path)
    return content, decode_image(content, str(path))


def read_file(path: Path, what: str) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: it cannot be read; the text calls it `what`.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: the {what} cannot be read ({error.strerror}); check the list and the folder."
        ) from error


def _check_whole(content: bytes, path: Path) -> None:
    """Refuse a JPEG without its end: what an interrupted copy lacks may be decoded as grey."""
    at = 2  # past the header, for a thumbnail in it has an end marker too
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] != b"\xda":
        is_filling = content[at + 1 : at + 2] == b"\xff"
        at += 1 if is_filling else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    if content.find(b"\xff\xd9", at) < 0:
        raise DataError(f"{path}: is no whole JPEG (no end marker); copy it anew, or leave it out.")


def read_mask(path: Path, pixels: np.ndarray) -> np.ndarray:
    """(H, W) uint8 labels of a mask file, of the size of the image `pixels`.

    Raises:
        DataError: the file is missing, damaged, in true colour or of another size.
    """
    labels = decode_labels(read_file(path, "mask"), str(path))
    if labels.shape != pixels.shape[:2]:
        (height, width), (found_height, found_width) = pixels.shape[:2], labels.shape
        raise DataError(
            f"{path}: the mask is {found_width}x{found_height} pixels, its image {width}x{height}; "
            "they must be equal."
        )
    return labels


def classes_in(labels: np.ndarray) -> tuple[int, ...]:
    """Image-level labels 0..C-1 of a mask."""
    return tuple(int(v) - 1 for v in np.unique(labels) if v not in (0, IGNORE))


def read_annotation(path: Path, names: tuple[str, ...]) -> tuple[int, ...]:
    """Image-level labels of a VOC XML file; objects marked difficult count too.

    Raises:
        DataError: the file is missing or damaged, or names an unknown class.
    """
    try:
        root = ElementTree.fromstring(read_file(path, "annotation"))
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: is not XML ({error}); copy it anew.") from error
    found = {(element.findtext("name") or "").strip() for element in root.iter("object")}
    if unknown := sorted(found - set(names)):
        raise DataError(
            f"{path}: class {unknown[0]!r} is none of {', '.join(names)}; mend the file, or give "
            "another list of classes."
        )
    return tuple(sorted(names.index(name) for name in found))


def read_json(path: Path, what: str) -> Any:
    """A JSON file.

    Raises:
        DataError: it is missing or not JSON.
    """
    try:
        return json.loads(read_file(path, what))
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); copy it anew.") from error


def read_lines(path: Path, what: str) -> dict[int, str]:
    """The lines of a text file that are not empty, stripped, by number from 1 on.

    Raises:
        DataError: it is missing or not UTF-8.
    """
    try:
        text = read_file(path, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error}).") from error
    lines = enumerate(text.splitlines(), start=1)
    return {number: line.strip() for number, line in lines if line.strip()}


def file_bytes(path: Path) -> int:
    """Size of a file; 0 where there is none (reading it will say so)."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def key_of(name: str) -> str:
    """A legal key for a file of any name: its path without suffix, other characters as _.

    `check_key` refuses what is longer than a key may be.

    Raises:
        DataError: it names a folder, such as ".".
    """
    if not Path(name).name:
        raise DataError(f"{name!r} names no file; write the path of an image.")
    return re.sub(r"[^A-Za-z0-9_-]", "_", str(Path(name).with_suffix("")))
