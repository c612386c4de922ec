"""COCO's instances JSON made from label masks, to build COCO shards of images that only have those.

    python tests/coco_instances.py ROOT LIST OUT.json

ROOT has JPEGImages/, SegmentationClass/ (labels 1..80) and labels.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image


def instances(root: Path, keys: list[str]) -> dict[str, Any]:
    """The instances file of some images; every connected region is an annotation."""
    labels = json.loads((root / "labels.json").read_text())
    numbers = labels.get("coco_category_ids", list(range(1, len(labels["classes"]) + 1)))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, key in enumerate(keys, start=1):
        mask = np.array(Image.open(root / "SegmentationClass" / f"{key}.png"))
        images.append(
            {
                "id": image_id,
                "file_name": f"{key}.jpg",
                "height": mask.shape[0],
                "width": mask.shape[1],
            }
        )
        for entry in _annotations(mask, numbers):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **entry})
    categories = [
        {"id": n, "name": name} for n, name in zip(numbers, labels["classes"], strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotations(mask: np.ndarray, numbers: list[int]) -> list[dict[str, Any]]:
    """Polygons, or where a region has holes a run-length code; 255 becomes a crowd region."""
    found = []
    values = [int(v) for v in np.unique(mask) if v not in (0, 255)]
    for value in values:
        count, parts = cv2.connectedComponents((mask == value).astype(np.uint8), connectivity=4)
        for part in range(1, count):
            shape = segmentation(parts == part)
            found.append({"category_id": numbers[value - 1], "iscrowd": 0, "segmentation": shape})
    if values and (mask == 255).any():
        code = {"counts": runs(mask == 255), "size": list(mask.shape)}
        found.append({"category_id": numbers[values[0] - 1], "iscrowd": 1, "segmentation": code})
    return found


def segmentation(region: np.ndarray) -> Any:
    """One polygon of a connected (H, W) bool region, or compressed runs where it has holes."""
    fine = np.pad(np.kron(region, np.ones((3, 3), np.uint8)), 1)
    outlines, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (hierarchy[0, :, 3] >= 0).any() or len(outlines[0]) < 3:
        return {"counts": compress(runs(region)), "size": list(region.shape)}
    corners = (outlines[0].reshape(-1, 2) - 1 + 0.5) / 3
    return [[round(float(x), 2) for x in corners.reshape(-1)]]


def runs(region: np.ndarray) -> list[int]:
    """Lengths of the runs of 0, 1, 0, .. down the columns of (H, W) bool pixels."""
    flat = np.concatenate([[False], region.T.reshape(-1)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [region.size]])).tolist()


def compress(counts: list[int]) -> str:
    """COCO's text of run lengths."""
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        while True:
            group, value = value & 31, value >> 5
            done = value == (-1 if group & 16 else 0)
            text += chr(48 + (group | (0 if done else 32)))
            if done:
                break
    return text


if __name__ == "__main__":
    folder, listed, out = (Path(a) for a in sys.argv[1:])
    out.write_text(json.dumps(instances(folder, listed.read_text().split())))
