"""Prediction of whole images."""

import numpy as np
import torch
import torch.nn.functional as F
from labelmaker import tiny_net

from auxdist.evaluate.predict import predict, probabilities

IMAGE = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (37, 51, 3), dtype=np.uint8)


def test_prediction_follows_the_method() -> None:
    net = tiny_net()
    with torch.inference_mode():
        out = net(net.prepare(torch.from_numpy(IMAGE).permute(2, 0, 1)[None]))
    up = F.interpolate(out.segmentation_refined, (37, 51), mode="bilinear", align_corners=False)
    expected = up[0].softmax(0)
    assert torch.equal(probabilities(net, IMAGE, "cpu"), expected)
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
