"""Splits from folders in the layout of the VOC devkit."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from build_script import run_script
from shared_data import SHARED, needs_shared

from auxdist.data.index import load_index
from auxdist.data.photos import PhotoItem
from auxdist.data.reader import decode_gray, encode_labels, read_ground_truth, read_sample
from auxdist.data.voc import VOC_CLASSES, VocSource, voc_recipe
from auxdist.errors import DataError


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Three images; image n shows class n, and its XML names the class after."""
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for n in range(3):
        labels = np.zeros((8, 10), np.uint8)
        labels[:4], labels[4] = n + 1, 255
        (root / f"SegmentationClass/k{n}.png").write_bytes(encode_labels(labels, [(0, 0, 0)]))
        cv2.imwrite(str(root / f"JPEGImages/k{n}.jpg"), np.full((8, 10, 3), 80, np.uint8))
        object_ = f"<object><name>{VOC_CLASSES[n + 1]}</name><difficult>1</difficult></object>"
        (root / f"Annotations/k{n}.xml").write_text(f"<annotation>{object_ * 2}</annotation>")
    (root / "ImageSets/Segmentation/train.txt").write_text("k0\nk1\n\nk2\n")
    return root


def _classes(source: VocSource) -> list[tuple[int, ...]]:
    return [item.read().classes for item in voc_recipe(source, "train", None).items]


def test_labels_come_from_masks_or_xml_or_json(devkit: Path, tmp_path: Path) -> None:
    stated = tmp_path / "labels.json"
    labels = {"k0": [1], "k1": [], "k2": [0, 1]}
    stated.write_text(json.dumps({"classes": ["x", "y"], "labels": labels}))
    assert _classes(VocSource(devkit, "train")) == [(0,), (1,), (2,)]
    assert _classes(VocSource(devkit, "train", labels="xml")) == [(1,), (2,), (3,)]
    assert _classes(VocSource(devkit, "train", labels=str(stated))) == [(1,), (), (0, 1)]
    assert voc_recipe(VocSource(devkit, "train", str(stated)), "t", None).classes == ("x", "y")


def test_class_names_are_those_of_voc_or_of_a_file(devkit: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\n")
    assert voc_recipe(VocSource(devkit, "train"), "t", None).classes == VOC_CLASSES
    recipe = voc_recipe(VocSource(devkit, "train", classes=names), "t", None)
    assert recipe.classes == ("one", "two", "three")
    assert recipe.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))


def test_names_of_classes_cannot_be_others_than_those_that_the_labels_count(
    devkit: Path, tmp_path: Path
) -> None:
    names, stated = tmp_path / "names.txt", tmp_path / "labels.json"
    stated.write_text(json.dumps({"classes": ["zebra", "ant"], "labels": {}}))
    for text, same in (("zebra\nant\n", True), ("ant\nzebra\n", False)):
        names.write_text(text)
        source = VocSource(devkit, "train", str(stated), classes=names)
        if same:
            assert voc_recipe(source, "t", None).classes == ("zebra", "ant")
        else:
            with pytest.raises(DataError, match=r"names\.txt: are other classes than those of"):
                voc_recipe(source, "t", None)


def test_a_list_is_found_by_its_whole_name(devkit: Path) -> None:
    lists = devkit / "ImageSets/Segmentation"
    (lists / "train.v2.txt").write_text("k1\n")
    for name in ("train.v2", "train.v2.txt"):
        assert [item.key for item in voc_recipe(VocSource(devkit, name), "t", None).items] == ["k1"]


def test_list_of_paths_is_understood(devkit: Path, tmp_path: Path) -> None:
    listed = tmp_path / "train_aug.txt"
    listed.write_text("/JPEGImages/k2.jpg /SegmentationClassAug/k2.png\n")
    (item,) = voc_recipe(VocSource(devkit, str(listed)), "train", None).items
    assert item.key == "k2"


def test_ground_truth_can_be_left_out_and_labels_still_come_from_masks(devkit: Path) -> None:
    recipe = voc_recipe(VocSource(devkit, "train"), "train", None, ground_truth=False)
    sample = recipe.items[0].read()
    assert not recipe.ground_truth
    assert sample.truth is None
    assert sample.classes == (0,)


def test_masks_of_another_folder_are_taken(devkit: Path) -> None:
    (devkit / "SegmentationClass").rename(devkit / "SegmentationClassAug")
    source = VocSource(devkit, "train", masks="SegmentationClassAug")
    (item, *_) = voc_recipe(source, "train", None).items
    assert isinstance(item, PhotoItem)
    assert item.mask == devkit / "SegmentationClassAug" / "k0.png"
    with pytest.raises(DataError, match="no such folder of masks"):
        voc_recipe(VocSource(devkit, "train"), "train", None)


def test_without_masks_there_is_no_ground_truth(devkit: Path) -> None:
    source = VocSource(devkit, "train", labels="xml", masks=None)
    recipe = voc_recipe(source, "train", None)
    assert not recipe.ground_truth
    assert recipe.items[0].read().truth is None
    with pytest.raises(DataError, match="need a folder of masks"):
        voc_recipe(VocSource(devkit, "train", masks=None), "train", None)


def test_what_is_missing_or_malformed_is_named(devkit: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"JPEGImages: no such folder"):
        voc_recipe(VocSource(tmp_path, "train"), "train", None)
    with pytest.raises(DataError, match=r"nothing: no such list, neither as a file nor"):
        voc_recipe(VocSource(devkit, "nothing"), "train", None)
    bad = tmp_path / "labels.json"
    bad.write_text("[]")
    with pytest.raises(DataError, match=r'labels\.json: \{"classes": \[names\]'):
        voc_recipe(VocSource(devkit, "train", str(bad)), "train", None)
    bad.write_text("{")
    with pytest.raises(DataError, match=r"labels\.json: is not JSON"):
        voc_recipe(VocSource(devkit, "train", str(bad)), "train", None)
    bad.write_text('{"classes": ["x"], "labels": {}}')
    with pytest.raises(DataError, match="k0: the file of labels has none for it"):
        _classes(VocSource(devkit, "train", str(bad)))
    bad.write_text('{"classes": ["x"], "labels": {"k0": "dog"}}')
    with pytest.raises(DataError, match=r"labels\.json: the labels of k0"):
        voc_recipe(VocSource(devkit, "train", str(bad)), "train", None)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8"):
        voc_recipe(VocSource(devkit, str(bad)), "train", None)


def test_bad_annotation_is_named(devkit: Path) -> None:
    source = VocSource(devkit, "train", labels="xml")
    (devkit / "Annotations/k0.xml").write_text("<annotation><object><name>unicorn</name>")
    with pytest.raises(DataError, match=r"k0\.xml: is not XML"):
        _classes(source)
    text = "<annotation><object><name>unicorn</name></object></annotation>"
    (devkit / "Annotations/k0.xml").write_text(text)
    with pytest.raises(DataError, match=r"k0\.xml: class 'unicorn' is none of aeroplane"):
        _classes(source)


@needs_shared
def test_real_photographs_keep_their_bytes_masks_labels_and_saliency(tmp_path: Path) -> None:
    assert SHARED is not None
    voc, out = SHARED / "data" / "voc", tmp_path / "val"
    keys = (voc / "val.txt").read_text().split()[:6]
    (tmp_path / "list.txt").write_text("\n".join(keys))
    options = ("--list", tmp_path / "list.txt", "--labels", voc / "labels.json",
               "--saliency", voc / "saliency", "--samples-per-shard", 4)  # fmt: skip
    run_script("build_voc.py", voc, out, *options, "--processes", 2)
    assert run_script("verify.py", out, "--processes", 1).stdout.endswith("Sound.\n")
    index = load_index(out)
    stated = json.loads((voc / "labels.json").read_text())
    assert index.classes == tuple(stated["classes"])
    samples = [(shard, s) for shard in range(2) for s in index.samples(shard)]
    assert [sample.key for _, sample in samples] == keys
    for shard, sample in samples:
        tar = (out / index.shards[shard].file).read_bytes()
        place = sample.members["jpg"]
        jpeg = (voc / "JPEGImages" / f"{sample.key}.jpg").read_bytes()
        assert tar[place.offset : place.offset + place.size] == jpeg
        truth = read_ground_truth(index, shard, sample)
        assert {v - 1 for v in np.unique(truth) if v not in (0, 255)} == set(sample.classes)
        assert list(sample.classes) == stated["labels"][sample.key]
        ready = decode_gray((voc / "saliency" / f"{sample.key}.png").read_bytes(), sample.key)
        made = read_sample(index, shard, sample).saliency
        assert made is not None
        assert np.array_equal(made, ready)


@needs_shared
def test_real_photographs_get_saliency_from_a_network(tmp_path: Path) -> None:
    assert SHARED is not None
    voc = SHARED / "data" / "voc"
    (tmp_path / "list.txt").write_text("2007_000123\n")
    model = SHARED / "data" / "weights" / "u2netp.onnx"
    run_script("build_voc.py", voc, tmp_path / "val", "--list", tmp_path / "list.txt",
               "--saliency-model", model)  # fmt: skip
    index = load_index(tmp_path / "val")
    assert index.saliency.startswith("network u2netp.onnx")
    sample = index.samples(0)[0]
    salient = read_sample(index, 0, sample).saliency
    truth = read_ground_truth(index, 0, sample)
    assert salient is not None
    found, there = salient > 127, (truth > 0) & (truth < 255)
    assert (found & there).sum() / (found | there).sum() > 0.8
