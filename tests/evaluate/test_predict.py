"""Prediction of whole images."""

import gc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from labelmaker import tiny_net

from auxdist.config import Config, DataConfig, EvaluateConfig
from auxdist.data.augment import rescale
from auxdist.evaluate import predict as predict_module
from auxdist.evaluate.predict import Inference, predict, probabilities
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.model.small import SmallBackbone
from auxdist.ops.crf import segmentation_crf
from auxdist.records import Outputs

IMAGE = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (37, 51, 3), dtype=np.uint8)


def test_prediction_follows_the_method() -> None:
    net = tiny_net()
    with torch.inference_mode():
        out = net(net.prepare(torch.from_numpy(IMAGE).permute(2, 0, 1)[None]))
    up = F.interpolate(out.segmentation_refined, (37, 51), mode="bilinear", align_corners=False)
    expected = up[0].softmax(0)
    torch.testing.assert_close(probabilities(net, IMAGE, "cpu"), expected, rtol=1e-5, atol=1e-7)
    labels = predict(net, IMAGE, "cpu")
    assert labels.dtype == np.uint8
    assert (labels == expected.argmax(0).numpy()).all()


def test_large_image_is_worked_off_in_blocks() -> None:
    image = np.tile(IMAGE, (11, 8, 1))[:400, :400]  # 2500 positions, beyond the dense form
    labels = predict(tiny_net(), image, "cpu")
    assert (labels != predict(tiny_net(row_block=2500), image, "cpu")).mean() < 1e-3


def test_image_smaller_than_a_feature_works() -> None:
    assert predict(tiny_net(), IMAGE[:3, :5], "cpu").shape == (3, 5)


def test_views_of_other_arrays_work() -> None:
    assert (predict(tiny_net(), IMAGE[:, ::-1], "cpu").shape) == (37, 51)


class Colours(AuxSegNet):
    """Sees red, green and blue as three classes, as AuxSegNet would say it."""

    def __init__(self) -> None:
        super().__init__(SmallBackbone(8), num_classes=2, branch_channels=8)

    def forward(self, image: torch.Tensor, noise: torch.Tensor | None = None) -> Outputs:
        """Logits are the mean colours of blocks of 8x8 pixels."""
        logits = 3 * F.avg_pool2d(image, 8, ceil_mode=True)
        return SimpleNamespace(segmentation_refined=logits)  # type: ignore[return-value]


def test_post_processing_follows_the_method() -> None:
    net, config = Colours(), Config(evaluate=EvaluateConfig(scales=(0.5, 1.0, 1.5)))
    each = []
    for scale, size in ((0.5, (19, 26)), (1.0, (37, 51)), (1.5, (56, 77))):  # rounded half up
        scaled = rescale(IMAGE, scale)
        assert scaled.shape[:2] == size
        with torch.inference_mode():
            out = net(net.prepare(torch.from_numpy(scaled).permute(2, 0, 1)[None]))
        logits = out.segmentation_refined
        up = F.interpolate(logits, (37, 51), mode="bilinear", align_corners=False)
        each.append(up[0].softmax(0).numpy())
    half = Config(data=DataConfig(image_scale=0.5), evaluate=config.evaluate)
    doubled = replace(half, evaluate=EvaluateConfig(scales=(1.0, 2.0, 3.0)))
    assert (
        predict(net, IMAGE, "cpu", Inference.post_processed(doubled))
        == predict(net, IMAGE, "cpu", Inference.post_processed(config))
    ).all()
    assert Inference.single_scale(half).text == "images at 0.5 of their size"
    highest = np.maximum(np.maximum(each[0], each[1]), each[2])
    plain = predict(net, IMAGE, "cpu", Inference(config.evaluate.scales))
    assert (plain == highest.argmax(0)).all()
    labels = predict(net, IMAGE, "cpu", Inference.post_processed(config))
    assert (labels == segmentation_crf(IMAGE, highest).argmax(0)).mean() > 0.999
    assert len({plain.tobytes(), labels.tobytes(), predict(net, IMAGE, "cpu").tobytes()}) == 3


def test_bf16_is_close_to_fp32_and_is_asked_for_by_the_configuration() -> None:
    config = Config(evaluate=EvaluateConfig(precision="bf16"))
    rough = probabilities(tiny_net(), IMAGE, "cpu", Inference.single_scale(config))
    exact = probabilities(tiny_net(), IMAGE, "cpu")
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.02
    assert Inference.post_processed(config).precision == "bf16"


@pytest.mark.parametrize("window", [64, 1000])
def test_window_larger_than_the_image_equals_whole(window: int) -> None:
    whole = probabilities(tiny_net(), IMAGE, "cpu", Inference())
    assert torch.equal(probabilities(tiny_net(), IMAGE, "cpu", Inference(window=window)), whole)


def test_windows_of_a_large_image_see_what_is_in_it() -> None:
    """Where a window's middle is, its probabilities are those of the window alone."""
    image = np.tile(IMAGE, (3, 3, 1))[:104, :152]
    net = tiny_net()
    found = probabilities(net, image, "cpu", Inference(window=64))
    assert found.shape == (4, 104, 152)
    torch.testing.assert_close(found.sum(0), torch.ones(104, 152), rtol=1e-5, atol=0)
    alone = probabilities(net, image[:64, :64], "cpu")
    # the first 32 pixels belong to one window alone; the last 8 are interpolated with others
    torch.testing.assert_close(found[:, :24, :24], alone[:, :24, :24], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, probabilities(net, image, "cpu"), atol=1e-3)


def test_no_more_than_two_arrays_of_all_classes_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []

    def count(logits: torch.Tensor) -> torch.Tensor:
        found = softmax(logits)
        big = {
            thing.untyped_storage().data_ptr()
            for thing in gc.get_objects()
            if type(thing) is torch.Tensor and tuple(thing.shape) == tuple(logits.shape)
        }
        alive.append(len(big))
        return found

    softmax = predict_module._softmax
    monkeypatch.setattr(predict_module, "_softmax", count)
    probabilities(tiny_net(), IMAGE, "cpu", Inference(scales=(1.0, 0.5, 1.5)))
    assert alive == [1, 2, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_post_processing_on_a_gpu_gives_the_labels_of_a_cpu() -> None:
    inference = Inference((0.5, 1.0), crf=True, window=64)
    image = np.tile(IMAGE, (3, 3, 1))
    labels = predict(Colours(), image, "cpu", inference)
    assert (predict(Colours().cuda(), image, "cuda", inference) == labels).mean() > 0.99
