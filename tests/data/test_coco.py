"""Splits from COCO's instances files."""

import copy
import json
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from build_script import run_script
from coco_instances import instances
from PIL import Image
from shared_data import SHARED, needs_shared

from auxdist.data.coco import coco_recipe
from auxdist.data.index import load_index
from auxdist.data.reader import read_ground_truth
from auxdist.errors import DataError

SQUARE = [[0, 0, 4, 0, 4, 4, 0, 4]]
CONTENT: dict[str, Any] = {
    "images": [
        {"id": 9, "file_name": "late.jpg", "height": 6, "width": 8},
        {"id": 2, "file_name": "early.jpg", "height": 6, "width": 8},
    ],
    "categories": [{"id": 70, "name": "toaster"}, {"id": 3, "name": "car"}],
    "annotations": [
        {"id": 1, "image_id": 2, "category_id": 70, "iscrowd": 0, "segmentation": SQUARE},
        {
            "id": 2, "image_id": 2, "category_id": 3, "iscrowd": 1,
            "segmentation": {"counts": [0, 12, 36], "size": [6, 8]},
        },
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The images of CONTENT and its instances file."""
    for name in ("late.jpg", "early.jpg"):
        cv2.imwrite(str(tmp_path / name), np.full((6, 8, 3), 90, np.uint8))
    (tmp_path / "instances.json").write_text(json.dumps(CONTENT))
    return tmp_path


def _recipe(folder: Path, **options: Any) -> Any:
    return coco_recipe(folder, folder / "instances.json", "val", None, **options)


def _rewrite(folder: Path, change: Any) -> None:
    content = copy.deepcopy(CONTENT)
    change(content)
    (folder / "instances.json").write_text(json.dumps(content))


def test_classes_follow_category_ids_and_images_their_ids(folder: Path) -> None:
    recipe = _recipe(folder)
    assert recipe.classes == ("car", "toaster")
    assert [item.key for item in recipe.items] == ["early", "late"]
    assert [item.read().classes for item in recipe.items] == [(0, 1), ()]


def test_a_list_names_the_images_to_take(folder: Path) -> None:
    listed = folder / "few.txt"
    listed.write_text("late.jpg\n")
    assert [item.key for item in _recipe(folder, listed=listed).items] == ["late"]
    listed.write_text("late\nearlier.jpg\n")
    with pytest.raises(DataError, match=r"few\.txt: earlier is not in the instances file; list"):
        _recipe(folder, listed=listed)


def test_names_of_other_tools_become_keys(folder: Path) -> None:
    (folder / "late.jpg").rename(folder / "late jpg.rf.0a1b.jpg")
    _rewrite(folder, lambda content: _named(content, "late.jpg", "late jpg.rf.0a1b.jpg"))
    recipe = _recipe(folder)
    assert [item.key for item in recipe.items] == ["early", "late_jpg_rf_0a1b"]
    assert recipe.items[1].read().pixels.shape == (6, 8, 3)
    listed = folder / "few.txt"
    for line in ("late jpg.rf.0a1b.jpg\n", "late_jpg_rf_0a1b\n"):
        listed.write_text(line)
        assert [item.key for item in _recipe(folder, listed=listed).items] == ["late_jpg_rf_0a1b"]


def _named(content: Any, old: str, new: str) -> None:
    (image,) = (image for image in content["images"] if image["file_name"] == old)
    image["file_name"] = new


def test_ground_truth_is_painted_with_crowds_ignored(folder: Path) -> None:
    truth = _recipe(folder).items[0].read().truth
    assert (truth[:4, :4] == 2).all()
    assert (truth[4:, :2] == 255).all()
    assert (truth[:, 4:] == 0).all()


def test_sizes_that_a_tool_wrote_with_a_point_are_understood(folder: Path) -> None:
    expected = _recipe(folder).items[0].read().truth
    sizes = [(float(entry["height"]), float(entry["width"])) for entry in CONTENT["images"]]

    def change(content: Any) -> None:
        for entry, (height, width) in zip(content["images"], sizes, strict=True):
            entry |= {"height": height, "width": width}

    _rewrite(folder, change)
    np.testing.assert_array_equal(_recipe(folder).items[0].read().truth, expected)


def test_a_smaller_region_lies_on_a_larger_one_in_whatever_order(folder: Path) -> None:
    small = {"id": 3, "image_id": 2, "category_id": 3, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]}
    for place in (0, 2):
        _rewrite(folder, lambda content, at=place: content["annotations"].insert(at, small))
        truth = _recipe(folder).items[0].read().truth
        assert (truth[1:3, 1:3] == 1).all()
        assert (truth[0, :4] == 2).all()


def test_the_masks_of_many_objects_are_not_held_at_once(folder: Path) -> None:
    side, count = 1000, 60
    photo = np.full((side, side, 3), 90, np.uint8)
    cv2.imwrite(str(folder / "early.jpg"), photo)
    several = [{**CONTENT["annotations"][0], "id": n} for n in range(count)]
    _rewrite(
        folder,
        lambda content: (
            content["images"][1].update(height=side, width=side),
            content.update(annotations=several),
        ),
    )
    item = _recipe(folder).items[0]
    tracemalloc.start()
    item.read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * photo.nbytes < count * side**2


def test_ground_truth_can_be_left_out(folder: Path) -> None:
    recipe = _recipe(folder, ground_truth=False)
    assert not recipe.ground_truth
    assert recipe.items[0].read().truth is None
    assert recipe.items[0].read().classes == (0, 1)


def test_malformed_files_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match="no such folder of images"):
        coco_recipe(folder / "none", folder / "instances.json", "val", None)
    with pytest.raises(DataError, match="instances file cannot be read"):
        coco_recipe(folder, folder / "none.json", "val", None)
    _rewrite(folder, lambda content: content.pop("images"))
    with pytest.raises(DataError, match=r"instances\.json: is no COCO instances file"):
        _recipe(folder)
    _rewrite(folder, lambda content: content["annotations"][0].update(category_id=5))
    with pytest.raises(DataError, match="annotation 1: category 5 is not among"):
        _recipe(folder)


def test_bad_annotation_is_named_with_its_image(folder: Path) -> None:
    _rewrite(folder, lambda content: content["annotations"][0].update(segmentation=[]))
    with pytest.raises(DataError, match=r"early\.jpg: annotation 1: a segmentation is a list"):
        _recipe(folder).items[0].read()
    _rewrite(folder, lambda content: content["images"][1].update(height=7))
    with pytest.raises(DataError, match=r"early\.jpg: is 8x6 pixels, the annotations say 8x7"):
        _recipe(folder).items[0].read()


@needs_shared
def test_real_masks_survive_the_way_through_an_instances_file(tmp_path: Path) -> None:
    assert SHARED is not None
    coco, out = SHARED / "data" / "coco", tmp_path / "val"
    keys = (coco / "val.txt").read_text().split()[:8]
    (tmp_path / "instances.json").write_text(json.dumps(instances(coco, keys)))
    run_script("build_coco.py", coco / "JPEGImages", out, "--processes", 1, "--no-saliency",
               "--instances", tmp_path / "instances.json")  # fmt: skip
    index = load_index(out)
    stated = json.loads((coco / "labels.json").read_text())
    assert index.classes == tuple(stated["classes"])
    equal = pixels = 0
    for sample in index.samples(0):
        assert list(sample.classes) == stated["labels"][sample.key]
        original = np.array(Image.open(coco / "SegmentationClass" / f"{sample.key}.png"))
        truth = read_ground_truth(index, 0, sample)
        equal += int((truth == original).sum())
        pixels += truth.size
    print(f"pixels that agree: {equal} of {pixels}")
    assert equal / pixels > 0.9999
