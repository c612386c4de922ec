"""The first labels, against the text of method 2.7."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from labelmaker import LABELS, tiny_net

from auxdist.data.augment import rescale
from auxdist.data.reader import SourceSample
from auxdist.errors import DataError
from auxdist.labels.fuse import cam_only, fuse
from auxdist.labels.initial import InitialLabels
from auxdist.labels.viewer import Viewer

GENERATOR = np.random.Generator(np.random.PCG64(0))
IMAGE = GENERATOR.integers(0, 256, (40, 56, 3), dtype=np.uint8)
SALIENCY = GENERATOR.integers(0, 256, (40, 56), dtype=np.uint8)
CLASSES = (0, 2)


def reference_cam(scales: Sequence[float] = (1.0,)) -> torch.Tensor:
    """Sum over scales and flips, normalised; every class, then the labelled ones."""
    net = tiny_net()
    total = torch.zeros(3, *IMAGE.shape[:2])
    for scale, flip in product(scales, (False, True)):
        seen = rescale(IMAGE, scale)
        image = torch.from_numpy(seen[:, ::-1].copy() if flip else seen).permute(2, 0, 1)[None]
        with torch.inference_mode():
            cam = net.classify(net.prepare(image), None)[1].relu()
        up = F.interpolate(cam, IMAGE.shape[:2], mode="bilinear", align_corners=False)[0]
        total += up.flip(2) if flip else up
    total = total / (total.amax((1, 2), keepdim=True) + 1e-5)
    return total[list(CLASSES)]


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5, 1.5)])
def test_initial_labels_follow_the_method(scales: tuple[float, ...]) -> None:
    config = replace(LABELS, cam_scales=scales)
    maps = InitialLabels(Viewer(tiny_net()), config).make(
        SourceSample("a", IMAGE, SALIENCY, CLASSES)
    )
    cam, saliency = reference_cam(scales), torch.from_numpy(SALIENCY).float() / 255
    expected = fuse(cam, saliency, CLASSES, config.cam_threshold, config.saliency_threshold)
    assert (maps.segmentation != expected.numpy()).sum() <= 1
    assert maps.cam is not None
    assert (maps.cam != cam_only(cam, CLASSES, config.cam_threshold).numpy()).sum() <= 1
    assert (maps.saliency == SALIENCY).all()
    assert {*np.unique(maps.cam)} == {0, 1, 3}, "the test would show nothing"


def test_every_scale_and_the_mirrored_image_count() -> None:
    source = SourceSample("a", IMAGE, SALIENCY, CLASSES)
    results = [
        InitialLabels(Viewer(tiny_net()), replace(LABELS, cam_scales=scales, cam_flip=flip)).make(
            source
        )
        for scales, flip in (((1.0,), True), ((1.0, 0.5), True), ((1.0,), False))
    ]
    shapes = {result.segmentation.shape for result in results}
    assert shapes == {IMAGE.shape[:2]}
    assert len({result.cam.tobytes() for result in results if result.cam is not None}) == 3


def test_image_scale_multiplies_every_scale() -> None:
    source = SourceSample("a", IMAGE, SALIENCY, CLASSES)
    scaled, plain = (
        InitialLabels(Viewer(tiny_net(), "cpu", scale), replace(LABELS, cam_scales=scales)).make(
            source
        )
        for scales, scale in (((1.0, 2.0), 0.5), ((0.5, 1.0), 1.0))
    )
    assert (scaled.segmentation == plain.segmentation).all()


def test_labels_of_the_mirrored_image_are_mirrored() -> None:
    maker = InitialLabels(Viewer(tiny_net()), replace(LABELS, cam_scales=(1.0,)))
    maps = maker.make(SourceSample("a", IMAGE, SALIENCY, CLASSES))
    mirrored = maker.make(
        SourceSample("a", IMAGE[:, ::-1].copy(), SALIENCY[:, ::-1].copy(), CLASSES)
    )
    assert (mirrored.segmentation[:, ::-1] != maps.segmentation).mean() < 0.01


def test_image_without_classes_is_ignored_where_salient() -> None:
    maps = InitialLabels(Viewer(tiny_net()), LABELS).make(SourceSample("a", IMAGE, SALIENCY, ()))
    assert (maps.segmentation == np.where(SALIENCY > 15, 255, 0)).all()  # 15 / 255 < 0.06
    assert maps.cam is not None
    assert not maps.cam.any()


def test_sample_without_saliency_says_how_to_get_one() -> None:
    with pytest.raises(DataError, match=r"a: has no saliency map .* --saliency-model"):
        InitialLabels(Viewer(tiny_net()), LABELS).make(SourceSample("a", IMAGE, None, (0,)))


def test_first_labels_in_bf16_differ_near_the_thresholds_alone() -> None:
    source = SourceSample("a", IMAGE, SALIENCY, CLASSES)
    exact = InitialLabels(Viewer(tiny_net()), LABELS).make(source)
    rough = InitialLabels(Viewer(tiny_net(), precision="bf16"), LABELS).make(source)
    assert exact.cam is not None
    assert rough.cam is not None
    assert 0 < (exact.cam != rough.cam).mean() < 0.05, "it computes in bf16, and no worse than that"
