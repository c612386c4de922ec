"""Bytes become images, labels and maps; damage is named, never passed on."""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from shardmaker import draw_scene, make_palette, make_shards

from auxdist.data import reader
from auxdist.data.index import Index, Member
from auxdist.data.reader import (
    check_size,
    decode_gray,
    decode_image,
    decode_labels,
    encode_gray,
    encode_labels,
    read_ground_truth,
    read_member,
    read_sample,
)
from auxdist.errors import DataError


def smooth_image() -> np.ndarray:
    """(48, 64, 3) RGB without fine detail, so that JPEG keeps it."""
    noise = np.random.default_rng(0).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(noise, (64, 48), interpolation=cv2.INTER_CUBIC)


def jpeg(mode: str = "RGB", orientation: int | None = None) -> bytes:
    """The smooth image as a JPEG of a colour mode and EXIF orientation."""
    stream = io.BytesIO()
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(smooth_image()).convert(mode).save(stream, "JPEG", quality=95, exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_images_come_out_as_rgb(mode: str) -> None:
    image = decode_image(jpeg(mode), "a.jpg")
    assert (image.dtype, image.shape) == (np.uint8, (48, 64, 3))
    assert np.abs(image.astype(int) - smooth_image()).mean() < 10


def test_gray_images_come_out_with_three_equal_channels() -> None:
    image = decode_image(jpeg("L"), "a.jpg")
    assert image.shape == (48, 64, 3)
    assert (image == image[..., :1]).all()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_is_not_applied(orientation: int) -> None:
    turned = decode_image(jpeg(orientation=orientation), "a.jpg")
    np.testing.assert_array_equal(turned, decode_image(jpeg(), "a.jpg"))


@pytest.mark.parametrize("keep", [0, 1, 20, 700, -2000, -2])
def test_a_truncated_image_is_named(keep: int) -> None:
    content = jpeg()[:keep]
    with pytest.raises(DataError, match=r"^a\.jpg: "):
        decode_image(content, "a.jpg")


def test_bytes_that_are_no_image_are_named() -> None:
    with pytest.raises(DataError, match=r"a\.jpg: 9 bytes that are no readable image"):
        decode_image(b"no image!", "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: cannot be decoded"):
        decode_image(b"", "a.jpg")


def test_labels_survive_the_palette() -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    content = encode_labels(labels, make_palette(20))
    np.testing.assert_array_equal(decode_labels(content, "a.png"), labels)


def test_labels_look_as_the_palette_says() -> None:
    content = encode_labels(np.asarray([[0, 1, 255]], dtype=np.uint8), [(0, 0, 0), (9, 8, 7)])
    seen = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert seen.tolist() == [[[0, 0, 0], [9, 8, 7], [224, 224, 192]]]


def test_equal_labels_give_equal_bytes() -> None:
    labels = draw_scene(0, 3, (48, 64), 0)[1]
    assert encode_labels(labels, make_palette(3)) == encode_labels(labels.copy(), make_palette(3))


def test_gray_label_images_are_taken_as_indices() -> None:
    labels = draw_scene(0, 3, (48, 64), 0)[1]
    np.testing.assert_array_equal(decode_labels(encode_gray(labels), "a.png"), labels)


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_label_images_of_few_bits_are_refused(bits: int) -> None:
    """Pillow would stretch 0, 1, 2, 3 of 4 bits to 0, 17, 34, 51."""
    per_row = -(-8 * bits // 8)
    header = struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)
    pixels = zlib.compress(2 * (b"\0" + b"\x1b" * per_row))
    parts = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    ]
    with pytest.raises(DataError, match="labels are a palette or 8-bit gray PNG"):
        decode_labels(b"\x89PNG\r\n\x1a\n" + b"".join(chunks), "a.png")


def test_labels_in_true_colour_are_refused() -> None:
    content = cv2.imencode(".png", smooth_image())[1].tobytes()
    with pytest.raises(DataError, match="palette or 8-bit gray PNG, this one is RGB"):
        decode_labels(content, "a.png")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "jpeg"])
def test_damaged_labels_are_named(damage: str) -> None:
    content = encode_labels(draw_scene(0, 3, (48, 64), 0)[1], make_palette(3))
    middle = len(content) - 60
    damaged = {
        "cut": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
        "empty": b"",
        "jpeg": jpeg(),
    }[damage]
    with pytest.raises(DataError, match=r"a\.png: is not a readable PNG"):
        decode_labels(damaged, "a.png")


def test_labels_of_absurd_size_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="too large to be decoded"):
        decode_labels(encode_gray(np.zeros((20, 20), np.uint8)), "a.png")


def test_gray_maps_survive() -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    np.testing.assert_array_equal(decode_gray(encode_gray(values), "a.png"), values)
    with pytest.raises(DataError, match=r"a\.png"):
        decode_gray(encode_gray(values)[:40], "a.png")


def test_sizes_that_differ_are_named() -> None:
    with pytest.raises(DataError, match=r"a\.png: is 3x2 pixels, 5x4 expected"):
        check_size(np.zeros((2, 3)), (4, 5), "a.png")


def test_a_sample_is_read_without_its_ground_truth(tmp_path: Path) -> None:
    index = make_shards(tmp_path, num_samples=4, num_shards=2)
    sample = index.samples(1)[0]
    del sample.members["gt.png"]  # type: ignore[attr-defined]
    found = read_sample(index, 1, sample)
    assert (found.key, found.classes) == (sample.key, sample.classes)
    assert found.image.shape == (48, 64, 3)
    assert found.saliency is not None
    assert found.saliency.shape == (48, 64)


def test_ground_truth_is_what_was_drawn(tmp_path: Path) -> None:
    index = make_shards(tmp_path, num_samples=4, num_shards=2)
    truth = read_ground_truth(index, 1, index.samples(1)[1])
    np.testing.assert_array_equal(truth, draw_scene(3, 3, (48, 64), 0)[1])


def test_a_shard_without_saliency_gives_none(tmp_path: Path) -> None:
    index = make_shards(tmp_path, num_samples=1, num_shards=1, saliency=False, ground_truth=False)
    assert read_sample(index, 0, index.samples(0)[0]).saliency is None
    with pytest.raises(DataError, match=r"sample img-00000 has no gt\.png"):
        read_ground_truth(index, 0, index.samples(0)[0])


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """One shard of one sample."""
    return make_shards(tmp_path, num_samples=1, num_shards=1)


def test_an_image_of_another_size_than_its_table_says_is_refused(index: Index) -> None:
    sample = replace(index.samples(0)[0], width=65)
    with pytest.raises(DataError, match=r"img-00000\.jpg: is 64x48 pixels, 65x48 expected"):
        read_sample(index, 0, sample)


def test_a_tar_cut_short_is_named(index: Index) -> None:
    tar = index.root / index.shards[0].file
    member = index.samples(0)[0].members["jpg"]
    os.truncate(tar, member.offset + member.size - 1)
    with pytest.raises(DataError, match=r"img-000000\.tar: ends within"):
        read_member(tar, member)


def test_a_missing_tar_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.tar: cannot be read \(No such file"):
        read_member(tmp_path / "gone.tar", Member(0, 1))


def test_few_files_stay_open(tmp_path: Path) -> None:
    reader._opened.cache_clear()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(reader._OPEN_FILES + 40):
        path = tmp_path / str(number)
        path.write_bytes(b"x")
        assert read_member(path, Member(0, 1)) == b"x"
    assert len(os.listdir("/proc/self/fd")) - before == reader._OPEN_FILES
    reader._opened.cache_clear()
    assert len(os.listdir("/proc/self/fd")) == before
