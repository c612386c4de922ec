"""Every command of the README, run as it stands there, on data of the size of a test."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from coco_instances import instances
from demo_run import build_shards
from onnxmaker import write_brightness_network
from styleguide import ROOT
from test_project import README, commands

from auxdist.data.palette import voc_palette
from auxdist.data.reader import encode_gray, encode_labels
from auxdist.data.scenes import draw_scene
from auxdist.data.voc import VOC_CLASSES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COMMANDS = commands(README.read_text("utf-8"))
COCO_CLASSES = 80


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the data that the README's commands name."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("auxdist", "launch", "shards"):
        (root / name).symlink_to(ROOT / name)
    copy_configs(root / "configs")
    build_shards(root / "build" / "demo")
    make_voc(root / "VOCdevkit" / "VOC2012", root)
    make_coco(root / "COCO")
    write_brightness_network(root / "u2netp.onnx")
    make_folder(root / "photos", root)
    return root


def copy_configs(folder: Path) -> None:
    """The configurations; so few images teach nothing, so whatever labels come are taken."""
    shutil.copytree(ROOT / "configs", folder)
    for name in ("demo.yaml", "voc-mini.yaml"):
        text = (folder / name).read_text()
        assert "\nlabels:\n" in text
        text = text.replace("\nlabels:\n", "\nlabels:\n  gate: {enabled: false}\n")
        if name == "voc-mini.yaml":
            text, changes = re.subn(r"(?m)^  (rounds|epochs): \d+$", r"  \1: 1", text)
            assert changes == 3, "of the classifier and of the rounds"
        (folder / name).write_text(text)


def make_voc(folder: Path, root: Path) -> None:
    palette = voc_palette(20)
    for name in (
        "JPEGImages",
        "SegmentationClass",
        "SegmentationClassAug",
        "Annotations",
        "ImageSets/Segmentation",
    ):
        (folder / name).mkdir(parents=True)
    (root / "saliency").mkdir()
    keys = [f"2007_{number:06d}" for number in range(6)]
    for number, key in enumerate(keys):
        scene = draw_scene(0, "voc", number, 96)
        write_jpeg(folder / "JPEGImages" / f"{key}.jpg", scene.image)
        for masks in ("SegmentationClass", "SegmentationClassAug"):
            (folder / masks / f"{key}.png").write_bytes(encode_labels(scene.labels, palette))
        shown = [VOC_CLASSES[label - 1] for label in np.unique(scene.labels) if 0 < label < 255]
        objects = "".join(f"<object><name>{name}</name></object>" for name in shown)
        (folder / "Annotations" / f"{key}.xml").write_text(f"<annotation>{objects}</annotation>")
        saliency = (scene.labels > 0).astype(np.uint8) * 255
        (root / "saliency" / f"{key}.png").write_bytes(encode_gray(saliency))
    (folder / "ImageSets/Segmentation/val.txt").write_text("\n".join(keys[4:]))
    (root / "train_aug.txt").write_text("\n".join(keys[:4]))


def make_coco(folder: Path) -> None:
    (folder / "annotations").mkdir(parents=True)
    for split in ("train2014", "val2014"):
        source = folder / split / "as_masks"
        (source / "SegmentationClass").mkdir(parents=True)
        names = [f"class {number}" for number in range(1, COCO_CLASSES + 1)]
        (source / "labels.json").write_text(json.dumps({"classes": names}))
        # coco.yaml has batches of 64: less than one step is refused
        count = 64 if split == "train2014" else 4
        keys = [f"COCO_{split}_{number:012d}" for number in range(count)]
        for number, key in enumerate(keys):
            scene = draw_scene(1, split, number, 96)
            write_jpeg(folder / split / f"{key}.jpg", scene.image)
            mask = encode_labels(scene.labels, voc_palette(COCO_CLASSES))
            (source / "SegmentationClass" / f"{key}.png").write_bytes(mask)
        file = folder / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(instances(source, keys)))


def make_folder(folder: Path, root: Path) -> None:
    folder.mkdir()
    for number in range(3):
        write_jpeg(folder / f"image{number}.jpg", draw_scene(2, "own", number, 96).image)
    (root / "train.csv").write_text("image0.jpg,cat;dog\nimage1.jpg,dog\n")
    (root / "val.csv").write_text("image2.jpg,cat\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "masks").mkdir()
    mask = draw_scene(2, "own", 2, 96).labels.clip(0, 2)
    (root / "masks" / "image2.png").write_bytes(encode_labels(mask, voc_palette(2)))
    shutil.copy(folder / "image0.jpg", root / "photo.jpg")


def write_jpeg(path: Path, image: np.ndarray) -> None:
    assert cv2.imwrite(str(path), image[..., ::-1])


def test_every_command_of_the_readme_runs(place: Path) -> None:
    programs = place / "bin"
    programs.mkdir()
    for name, call in (("python", ""), ("auxdist", " -m auxdist.cli")):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{call} "$@"\n')
        (programs / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    run = [words for words in COMMANDS if words[0] != "make"]  # those are the whole of `make ci`
    assert len(run) >= 10
    for words in run:
        done = subprocess.run(
            words, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    assert (place / "predictions").is_dir()
    assert (place / "runs/demo/report.html").is_file()
    assert not (place / "runs/coco/checkpoints").exists()


def test_the_make_commands_of_the_readme_are_those_that_ci_runs() -> None:
    made = [words for words in COMMANDS if words[0] == "make"]
    assert made == [["make", "demo"], ["make", "test"]]
    script = (ROOT / ".ci" / "run").read_text() + (ROOT / "Makefile").read_text()
    assert "make test" in script
    assert "$(MAKE) demo" in script
