"""Splits of a user's own images: a folder and a CSV file of labels."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from auxdist.data.palette import voc_palette
from auxdist.data.photos import PhotoItem, file_bytes, key_of, read_lines
from auxdist.data.recipe import Recipe, SaliencyMaker
from auxdist.errors import DataError
from auxdist.runfolder import file_sha256

_HEADER = (
    {"file", "filename", "file_name", "image", "path"},
    {"label", "labels", "class", "classes"},
)
"""Words for the columns of a table that has a header, in any case."""


@dataclass(frozen=True)
class FolderSource:
    """A user's own images.

    images   their folder
    table    CSV file of `file,label1;label2` lines; nothing after the comma for no label
    classes  file of class names, one a line; None: the names in the table, sorted
    masks    folder of ground truth, KEY.png, or None
    """

    images: Path
    table: Path
    classes: Path | None = None
    masks: Path | None = None


def folder_recipe(source: FolderSource, split: str, saliency: SaliencyMaker | None) -> Recipe:
    """The images that a CSV file lists.

    The key of an image is its path without suffix, with _ for whatever a key may not hold.

    Raises:
        DataError: a folder or file is missing, a line is malformed, a label is none of the classes.
    """
    for folder in (source.images, source.masks):
        if folder is not None and not folder.is_dir():
            raise DataError(f"{folder}: no such folder.")
    rows = _read_table(source.table)
    names = _names(rows)
    if source.classes is not None:
        names = tuple(read_lines(source.classes, "list of classes").values())
    if not names:
        raise DataError(f"{source.table}: names no class at all; file,label1;label2 was expected.")
    number = {name: c for c, name in enumerate(names)}
    items = []
    for line, file, labels in rows:
        if unknown := [label for label in labels if label not in number]:
            raise DataError(
                f"{source.table}:{line}: label {unknown[0]!r} is none of the classes in "
                f"{source.classes}."
            )
        try:
            items.append(_item(source, file, tuple(number[x] for x in labels), names))
        except DataError as error:
            raise DataError(f"{source.table}:{line}: {error}") from error
    return Recipe(
        split=split,
        classes=names,
        palette=voc_palette(len(names)),
        ground_truth=source.masks is not None,
        items=items,
        saliency=saliency,
        origin={
            "source": "own images",
            "labels_sha256": file_sha256(source.table),
            "images": str(source.images.resolve()),
            "masks": source.masks and str(source.masks.resolve()),
        },
    )


def num_reencoded(recipe: Recipe) -> int:
    """Images called .png, which are encoded as JPEG."""
    paths = [item.image for item in recipe.items if isinstance(item, PhotoItem)]
    return sum(path.suffix.lower() == ".png" for path in paths)


def _item(
    source: FolderSource, file: str, classes: tuple[int, ...], names: tuple[str, ...]
) -> PhotoItem:
    key = key_of(file)
    return PhotoItem(
        key=key,
        image=source.images / file,
        num_bytes=file_bytes(source.images / file),
        labels="list",
        names=names,
        classes=classes,
        mask=source.masks and source.masks / f"{key}.png",
        keep_truth=source.masks is not None,
    )


def _read_table(path: Path) -> list[tuple[int, str, list[str]]]:
    """Line number, file and labels of every line but a header."""
    rows = []
    for number, line in read_lines(path, "CSV file of labels").items():
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if len(cells) != 2 or not cells[0]:
            raise DataError(f"{path}:{number}: {line!r}; file,label1;label2 was expected.")
        if number == 1 and all(map(_is_word, cells, _HEADER)):
            continue
        rows.append((number, cells[0], [x.strip() for x in cells[1].split(";") if x.strip()]))
    return rows


def _is_word(cell: str, words: set[str]) -> bool:
    return cell.lower() in words


def _names(rows: list[tuple[int, str, list[str]]]) -> tuple[str, ...]:
    return tuple(sorted({label for _, _, labels in rows for label in labels}))
