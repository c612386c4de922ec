"""Splits from a user's own images."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from build_script import run_script

from auxdist.data.folder import FolderSource, folder_recipe, num_reencoded
from auxdist.data.index import load_index
from auxdist.data.photos import key_of, read_photo
from auxdist.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """a.jpg, "sub/b c.v2.jpg" and d.png (with alpha)."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b c.v2.jpg"):
        cv2.imwrite(str(folder / name), np.full((9, 12, 3), 100, np.uint8))
    cv2.imwrite(str(folder / "d.png"), np.full((9, 12, 4), 100, np.uint8))
    return folder


def _table(images: Path, text: str) -> FolderSource:
    path = images.parent / "labels.csv"
    path.write_text(text)
    return FolderSource(images, path)


TABLE = "file,labels\na.jpg,dog;cat\n\nsub/b c.v2.jpg,\nd.png,dog\n"


def test_images_labels_and_class_names_come_from_the_table(images: Path) -> None:
    recipe = folder_recipe(_table(images, TABLE), "train", None)
    assert recipe.classes == ("cat", "dog")
    assert [item.key for item in recipe.items] == ["a", "sub_b_c_v2", "d"]
    assert [item.read().classes for item in recipe.items] == [(1, 0), (), (1,)]
    assert not recipe.ground_truth


@pytest.mark.parametrize("header", ["file,labels", "Filename,Label", "image, classes"])
def test_a_header_is_no_image(images: Path, header: str) -> None:
    table = TABLE.replace("file,labels", header)
    assert folder_recipe(_table(images, table), "train", None).classes == ("cat", "dog")


def test_png_is_encoded_once_as_jpeg_and_counted(images: Path) -> None:
    recipe = folder_recipe(_table(images, TABLE), "train", None)
    assert num_reencoded(recipe) == 1
    jpeg, pixels = read_photo(images / "d.png")
    assert jpeg.startswith(b"\xff\xd8")
    assert pixels.shape == (9, 12, 3)
    assert abs(int(pixels.mean()) - 100) <= 1


def test_masks_of_own_images_become_ground_truth(images: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for key in ("a", "sub_b_c_v2", "d"):
        cv2.imwrite(str(tmp_path / "masks" / f"{key}.png"), np.full((9, 12), 2, np.uint8))
    table = _table(images, TABLE).table
    recipe = folder_recipe(FolderSource(images, table, None, tmp_path / "masks"), "val", None)
    truth = recipe.items[1].read().truth
    assert recipe.ground_truth
    assert truth is not None
    assert (truth == 2).all()


@pytest.mark.parametrize(
    ("name", "key"), [("a.jpg", "a"), ("x/y.z.png", "x_y_z"), ("Ünï 1.jpeg", "_n__1")]
)
def test_key_of_any_name_is_legal(name: str, key: str) -> None:
    assert key_of(name) == key


def test_faults_of_the_table_are_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels\.csv:2: 'a\.jpg'; file,label1;label2 was"):
        folder_recipe(_table(images, "d.png,dog\na.jpg\n"), "train", None)
    (tmp_path / "names.txt").write_text("dog\n")
    table = _table(images, TABLE).table
    with pytest.raises(DataError, match=r"labels\.csv:2: label 'cat' is none of the classes in"):
        folder_recipe(FolderSource(images, table, tmp_path / "names.txt"), "train", None)
    with pytest.raises(DataError, match=r"labels\.csv:2: '\.' names no file"):
        folder_recipe(_table(images, "d.png,dog\n.,dog\n"), "train", None)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        folder_recipe(FolderSource(tmp_path / "nowhere", table), "train", None)
    with pytest.raises(DataError, match="no class at all"):
        folder_recipe(_table(images, "a.jpg,\n"), "train", None)


def test_script_builds_shards_of_own_images_and_says_what_it_did(
    images: Path, tmp_path: Path
) -> None:
    source = _table(images, TABLE)
    done = run_script("build_folder.py", images, tmp_path / "out", "--labels", source.table,
                      "--processes", 1)  # fmt: skip
    assert "1 PNG images are encoded once as JPEG, quality 95" in done.stdout
    assert "3 images in 1 shards, 2 classes" in done.stdout
    index = load_index(tmp_path / "out")
    assert [sample.classes for sample in index.samples(0)] == [(0, 1), (), (1,)]
    (images / "a.jpg").write_bytes(b"")
    failed = run_script("build_folder.py", images, tmp_path / "x", "--labels", source.table,
                        "--processes", 1, code=2)  # fmt: skip
    assert failed.stderr.rstrip().splitlines()[-1].startswith(f"error: {images / 'a.jpg'}: is nei")
    skipped = run_script("build_folder.py", images, tmp_path / "x", "--labels", source.table,
                         "--processes", 1, "--skip-bad")  # fmt: skip
    assert "1 bad images left out" in skipped.stdout
