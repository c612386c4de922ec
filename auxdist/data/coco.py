"""Splits of COCO: a folder of images and the instances JSON.

Labels 1..C follow the order of category ids. An image has the classes of all its annotations,
crowds included. In the ground truth the smaller region (in pixels) lies on top; crowd regions are
255 where no other region covers them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from auxdist.data.palette import voc_palette
from auxdist.data.photos import file_bytes, key_of, read_json, read_lines, read_photo
from auxdist.data.recipe import RawSample, Recipe, SaliencyMaker
from auxdist.data.regions import region_mask
from auxdist.errors import DataError
from auxdist.records import IGNORE
from auxdist.runfolder import file_sha256


@dataclass(frozen=True)
class Region:
    """One annotation: its label 1..C and, where the ground truth is wanted, its `segmentation`."""

    number: int
    label: int
    crowd: bool
    segmentation: Any


@dataclass(frozen=True)
class CocoItem:
    """An image of the instances file with its annotations. `size` is (height, width)."""

    key: str
    image: Path
    num_bytes: int
    size: tuple[int, int]
    regions: tuple[Region, ...]
    keep_truth: bool

    @property
    def files(self) -> tuple[Path, ...]:
        """The image; the regions are from the instances file, which the recipe names."""
        return (self.image,)

    def read(self) -> RawSample:
        """Read the image and paint its regions.

        Raises:
            DataError: the image is missing, damaged or of another size, or a region is malformed.
        """
        jpeg, pixels = read_photo(self.image)
        height, width = pixels.shape[:2]
        if (height, width) != self.size:
            raise DataError(
                f"{self.image}: is {width}x{height} pixels, the annotations say "
                f"{self.size[1]}x{self.size[0]}; they belong to another file."
            )
        classes = tuple(sorted({region.label - 1 for region in self.regions}))
        return RawSample(jpeg, pixels, classes, self._truth() if self.keep_truth else None)

    def _truth(self) -> np.ndarray:
        """(H, W) uint8 labels: a smaller region lies on a larger one, all of them on crowds."""
        labels = np.zeros(self.size, np.uint8)
        areas: list[tuple[int, Region]] = []
        for region in self.regions:
            mask = self._mask(region)
            if region.crowd:
                labels[mask] = IGNORE
            else:
                areas.append((int(mask.sum()), region))
        # Decoded a second time: hundreds of masks of a large image at once would fill the memory.
        for _, region in sorted(areas, key=lambda pair: -pair[0]):
            labels[self._mask(region)] = region.label
        return labels

    def _mask(self, region: Region) -> np.ndarray:
        """(H, W) bool pixels of a region."""
        try:
            return region_mask(region.segmentation, *self.size)
        except DataError as error:
            raise DataError(
                f"{self.image}: annotation {region.number}: {error}; mend the file, or build "
                "without masks by --no-ground-truth."
            ) from error


def coco_recipe(
    images: Path,
    instances: Path,
    split: str,
    saliency: SaliencyMaker | None,
    ground_truth: bool = True,
    listed: Path | None = None,
) -> Recipe:
    """The split that an instances file describes, by image id; of it what is listed, if a list is.

    Raises:
        DataError: the folder or a file is missing, the file is malformed, or does not know an image
            of the list.
    """
    if not images.is_dir():
        raise DataError(f"{images}: no such folder of images.")
    content = read_json(instances, "instances file")
    try:
        names, labels = _categories(content)
        regions = _regions(instances, content, labels, ground_truth)
        items = [
            _item(images, entry, tuple(regions.get(entry["id"], ())), ground_truth)
            for entry in _listed(sorted(content["images"], key=lambda entry: entry["id"]), listed)
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{instances}: is no COCO instances file (images, annotations, categories expected; "
            f"{error!r})."
        ) from error
    return Recipe(
        split=split,
        classes=names,
        palette=voc_palette(len(names)),
        ground_truth=ground_truth,
        items=items,
        saliency=saliency,
        origin={
            "source": "COCO instances",
            "instances_sha256": file_sha256(instances),
            "images": str(images.resolve()),
        },
    )


def _listed(entries: list[dict[str, Any]], listed: Path | None) -> list[dict[str, Any]]:
    """The images whose files, or keys, a list names."""
    if listed is None:
        return entries
    wanted = {_key(line) for line in read_lines(listed, "list of images").values()}
    known = {_key(entry["file_name"]) for entry in entries}
    if unknown := sorted(wanted - known):
        raise DataError(
            f"{listed}: {unknown[0]} is not in the instances file; list files of its images."
        )
    return [entry for entry in entries if _key(entry["file_name"]) in wanted]


def _key(file_name: str) -> str:
    """That of an image: COCO's own names as they are, others with _ for what a key may not hold."""
    return key_of(Path(file_name).name)


def _categories(content: dict[str, Any]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Class names, and the label 1..C of every category id."""
    ordered = sorted(content["categories"], key=lambda category: category["id"])
    labels = {category["id"]: label for label, category in enumerate(ordered, start=1)}
    return tuple(category["name"] for category in ordered), labels


def _regions(
    instances: Path, content: dict[str, Any], labels: dict[int, int], ground_truth: bool
) -> dict[int, list[Region]]:
    """The annotations of every image id."""
    regions: dict[int, list[Region]] = defaultdict(list)
    for entry in content["annotations"]:
        if entry["category_id"] not in labels:
            raise DataError(
                f"{instances}: annotation {entry['id']}: category {entry['category_id']} is not "
                "among the file's categories; mend the file."
            )
        regions[entry["image_id"]].append(
            Region(
                number=entry["id"],
                label=labels[entry["category_id"]],
                crowd=bool(entry.get("iscrowd", 0)),
                segmentation=entry["segmentation"] if ground_truth else None,
            )
        )
    return regions


def _item(
    images: Path, entry: dict[str, Any], regions: tuple[Region, ...], ground_truth: bool
) -> CocoItem:
    path = images / entry["file_name"]
    return CocoItem(
        key=_key(entry["file_name"]),
        image=path,
        num_bytes=file_bytes(path),
        size=(int(entry["height"]), int(entry["width"])),  # some tools write 480.0
        regions=regions,
        keep_truth=ground_truth,
    )
