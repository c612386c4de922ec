"""Saliency maps: plain estimate, network, ready maps."""

from pathlib import Path

import numpy as np
import pytest
from onnxmaker import write_brightness_network
from shared_data import SHARED, needs_shared

from auxdist.data.command import build_parser, saliency_maker
from auxdist.data.estimate import OnnxSaliency, PlainSaliency, ReadySaliency, plain_saliency
from auxdist.data.reader import decode_gray, decode_image, encode_gray
from auxdist.data.scenes import draw_scene
from auxdist.errors import DataError


def _foreground_iou(threshold: float) -> float:
    both = either = 0
    for number in range(12):
        scene = draw_scene(1, "val", number, 128)
        salient, truth = plain_saliency(scene.image) > 255 * threshold, scene.labels > 0
        both += (salient & truth).sum()
        either += (salient | truth).sum()
    return both / either


def test_plain_estimator_finds_most_of_the_demo_objects_but_errs() -> None:
    assert 0.5 < _foreground_iou(0.5) < 0.9
    assert 0.5 < _foreground_iou(0.06) < 0.9


def test_plain_estimator_is_deterministic_and_keeps_the_size() -> None:
    image = draw_scene(0, "train", 0, 96).image
    first = plain_saliency(image)
    assert first.shape == image.shape[:2]
    assert first.dtype == np.uint8
    assert np.array_equal(first, plain_saliency(image.copy()))


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 200, 3), (64, 64, 3)])
def test_plain_estimator_bears_tiny_and_uniform_images(shape: tuple[int, int, int]) -> None:
    assert plain_saliency(np.full(shape, 90, np.uint8)).shape == shape[:2]


def test_plain_estimator_calls_itself_a_weak_substitute() -> None:
    assert PlainSaliency().name == "plain estimator (weak substitute)"


@needs_shared
def test_network_gives_maps_close_to_those_of_the_full_network() -> None:
    assert SHARED is not None
    voc = SHARED / "data" / "voc"
    maker = OnnxSaliency.of(SHARED / "data" / "weights" / "u2netp.onnx")
    assert maker.name.startswith("network u2netp.onnx (sha256 ")
    differences = []
    for key in ("2007_000033", "2007_000123", "2007_000175"):  # one clear object each
        image = decode_image((voc / "JPEGImages" / f"{key}.jpg").read_bytes(), key)
        ready = decode_gray((voc / "saliency" / f"{key}.png").read_bytes(), key)
        made = maker(key, image)
        assert made.shape == ready.shape
        differences.append(np.abs(made.astype(float) - ready).mean() / 255)
    print(f"mean absolute differences to U2-Net: {differences}")
    assert max(differences) < 0.03


def test_network_is_asked_at_its_own_size_and_its_map_spread_over_the_image(tmp_path: Path) -> None:
    write_brightness_network(tmp_path / "net.onnx")
    maker = OnnxSaliency.of(tmp_path / "net.onnx")
    image = np.zeros((60, 90, 3), np.uint8)
    image[:, 45:] = 200
    saliency = maker("a", image)
    assert saliency.shape == (60, 90)
    assert (saliency[:, :44] == 0).all()
    assert (saliency[:, 46:] == 255).all()


def test_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(DataError, match="no ONNX network that OpenCV"):
        OnnxSaliency.of(path)
    with pytest.raises(DataError, match="no saliency network"):
        OnnxSaliency.of(tmp_path / "missing.onnx")


def test_ready_maps_are_read_by_key_and_checked(tmp_path: Path) -> None:
    values = np.arange(48, dtype=np.uint8).reshape(6, 8)
    (tmp_path / "a.png").write_bytes(encode_gray(values))
    maker = ReadySaliency.of(tmp_path)
    assert np.array_equal(maker("a", np.zeros((6, 8, 3), np.uint8)), values)
    with pytest.raises(DataError, match=r"a\.png: .*8x6 pixels, 9x6 expected"):
        maker("a", np.zeros((6, 9, 3), np.uint8))
    with pytest.raises(DataError, match=r"b\.png: no saliency map for b"):
        maker("b", np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(DataError, match="is no folder"):
        ReadySaliency.of(tmp_path / "none")


@needs_shared
def test_missing_ready_maps_are_made_where_a_network_is_given(tmp_path: Path) -> None:
    assert SHARED is not None
    network = OnnxSaliency.of(SHARED / "data" / "weights" / "u2netp.onnx")
    image = draw_scene(0, "train", 0, 96).image
    ready = np.full(image.shape[:2], 7, np.uint8)
    (tmp_path / "a.png").write_bytes(encode_gray(ready))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    maker = ReadySaliency.of(tmp_path, network)
    assert np.array_equal(maker("a", image), ready)
    assert np.array_equal(maker("b", image), network("b", image))
    assert "others by network u2netp.onnx" in maker.name
    with pytest.raises(DataError, match=r"bad\.png"):
        maker("bad", image)


def test_maps_cannot_be_both_asked_for_and_ruled_out(tmp_path: Path) -> None:
    words = ["out", "--no-saliency", "--saliency", str(tmp_path)]
    with pytest.raises(DataError, match=r"--no-saliency: contradicts --saliency"):
        saliency_maker(build_parser("").parse_args(words))
