"""Splits in the layout of the VOC devkit: JPEGImages, SegmentationClass, Annotations, lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from auxdist.data.palette import voc_palette
from auxdist.data.photos import PhotoItem, file_bytes, read_json, read_lines
from auxdist.data.recipe import Recipe, SaliencyMaker
from auxdist.errors import DataError
from auxdist.runfolder import file_sha256

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

_KINDS: dict[str, Literal["list", "xml", "mask"]] = {"xml": "xml", "masks": "mask"}


@dataclass(frozen=True)
class VocSource:
    """Which files of a VOC folder make a split.

    root     folder with JPEGImages/
    listed   file of keys, or its name in ImageSets/Segmentation
    labels   "masks", "xml", or a JSON file {"classes": [..], "labels": {key: [0-based classes]}}
    masks    folder of label PNGs, by itself or in `root`; None: no ground truth
    classes  file of class names, one a line; None: those of the JSON file, or VOC's 20
    """

    root: Path
    listed: str
    labels: str = "masks"
    masks: str | None = "SegmentationClass"
    classes: Path | None = None


def voc_recipe(
    source: VocSource, split: str, saliency: SaliencyMaker | None, ground_truth: bool = True
) -> Recipe:
    """The split that a list names.

    Raises:
        DataError: a folder, the list or the file of labels is missing or malformed.
    """
    images = _folder(source.root / "JPEGImages", "images")
    masks = None if source.masks is None else _mask_folder(source.root, source.masks)
    listed = _find_list(source.root, source.listed)
    stated = None if source.labels in ("masks", "xml") else _stated_labels(Path(source.labels))
    names = _class_names(source, stated)
    if source.labels == "masks" and masks is None:
        raise DataError("Labels from masks need a folder of masks; name it by --masks.")
    annotations = _folder(source.root / "Annotations", "XML") if source.labels == "xml" else None
    kind: Literal["list", "xml", "mask"] = _KINDS.get(source.labels, "list")

    def item(key: str) -> PhotoItem:
        image = images / f"{key}.jpg"
        return PhotoItem(
            key=key,
            image=image,
            num_bytes=file_bytes(image),
            labels=kind,
            names=names,
            classes=None if stated is None else _classes_of(stated, key, source.labels),
            annotation=annotations and annotations / f"{key}.xml",
            mask=_mask_of(masks, key, ground_truth or source.labels == "masks"),
            keep_truth=ground_truth and masks is not None,
        )

    origin = {
        "source": "VOC folder",
        "root": str(source.root.resolve()),
        "masks": masks and str(masks.resolve()),
        "labels": source.labels if stated is None else file_sha256(Path(source.labels)),
    }
    return Recipe(
        split=split,
        classes=names,
        palette=voc_palette(len(names)),
        ground_truth=ground_truth and masks is not None,
        items=[item(_key(line)) for line in read_lines(listed, "list").values()],
        saliency=saliency,
        origin=origin,
    )


def _folder(path: Path, what: str) -> Path:
    if not path.is_dir():
        raise DataError(f"{path}: no such folder ({what}); is this the folder VOCdevkit/VOC2012?")
    return path


def _mask_folder(root: Path, name: str) -> Path:
    folder = root / name if (root / name).is_dir() else Path(name)
    if not folder.is_dir():
        raise DataError(
            f"{root / name}: no such folder of masks; name one by --masks, or take --masks none."
        )
    return folder


def _mask_of(masks: Path | None, key: str, needed: bool) -> Path | None:
    return masks / f"{key}.png" if masks is not None and needed else None


def _find_list(root: Path, name: str) -> Path:
    places = (
        Path(name),
        root / "ImageSets" / "Segmentation" / f"{Path(name).name.removesuffix('.txt')}.txt",
    )
    for place in places:
        if place.is_file():
            return place
    raise DataError(f"{name}: no such list, neither as a file nor as {places[1]}.")


def _key(line: str) -> str:
    """The key of a line: "KEY", or "/JPEGImages/KEY.jpg /SegmentationClassAug/KEY.png"."""
    first = line.split(maxsplit=1)[0]
    return Path(first).stem if "/" in first else first


def _stated_labels(path: Path) -> dict[str, Any]:
    value = read_json(path, "file of labels")
    if not (
        isinstance(value, dict)
        and isinstance(value.get("classes"), list)
        and isinstance(value.get("labels"), dict)
    ):
        raise DataError(
            f'{path}: {{"classes": [names], "labels": {{key: [0-based classes]}}}} was expected.'
        )
    return value


def _classes_of(stated: dict[str, Any], key: str, path: str) -> tuple[int, ...] | None:
    classes = stated["labels"].get(key)
    if classes is None:
        return None
    if not isinstance(classes, list) or not all(isinstance(c, int) for c in classes):
        raise DataError(f"{path}: the labels of {key} are {classes!r}; a list of numbers expected.")
    return tuple(classes)


def _class_names(source: VocSource, stated: dict[str, Any] | None) -> tuple[str, ...]:
    named = None if stated is None else tuple(stated["classes"])
    if source.classes is None:
        return VOC_CLASSES if named is None else named
    names = tuple(read_lines(source.classes, "list of classes").values())
    if named not in (None, names):
        raise DataError(
            f"{source.classes}: are other classes than those of {source.labels}, whose numbers "
            "count its own; leave --classes out."
        )
    return names
