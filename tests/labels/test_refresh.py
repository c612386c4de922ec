"""Labels after a round, against the text of method 2.7."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from labelmaker import tiny_net

from auxdist.config import LabelsConfig
from auxdist.data.augment import rescale
from auxdist.data.reader import SourceSample
from auxdist.errors import DataError
from auxdist.labels.refresh import RefinedLabels
from auxdist.labels.viewer import Viewer
from auxdist.ops.crf import saliency_crf

GENERATOR = np.random.Generator(np.random.PCG64(0))
IMAGE = GENERATOR.integers(0, 256, (36, 50, 3), dtype=np.uint8)
LABELS = LabelsConfig(cam_threshold=0.1, saliency_threshold=0.5, saliency_crf=False)
SALIENCY = GENERATOR.integers(0, 256, (36, 50), dtype=np.uint8)


def reference(
    classes: tuple[int, ...], views: tuple[tuple[float, bool], ...] = ((1.0, False),)
) -> tuple[np.ndarray, np.ndarray]:
    """Segmentation and saliency, step by step, with every class and the dense affinity."""
    net = tiny_net()
    ups, sals = [], []
    for scale, mirrored in views:
        view = torch.from_numpy(rescale(IMAGE, scale)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            out = net(net.prepare(view.flip(3) if mirrored else view))
        cam = out.cam[0].relu()
        cam = cam / (cam.amax((1, 2), keepdim=True) + 1e-5)
        refined = out.affinity.matrix[0] @ cam.flatten(1).T  # (N, C)
        refined = refined.T.reshape(1, *cam.shape)
        up = F.interpolate(refined, IMAGE.shape[:2], mode="bilinear", align_corners=False)[0]
        assert out.saliency_refined is not None
        sal = torch.sigmoid(out.saliency_refined)
        sal = F.interpolate(sal, IMAGE.shape[:2], mode="bilinear", align_corners=False)[0, 0]
        ups.append((up.flip(2) if mirrored else up).numpy())
        sals.append((sal.flip(1) if mirrored else sal).numpy())
    up, sal = np.mean(ups, axis=0), np.mean(sals, axis=0)
    sal = (sal + SALIENCY.astype(np.float32) / 255) / 2
    labels = np.zeros(sal.shape, dtype=np.uint8)
    for y, x in np.ndindex(*sal.shape):
        scores = {c: up[c, y, x] for c in classes}
        best = max(scores, key=lambda c: scores[c], default=None)
        seen = best is not None and scores[best] > LABELS.cam_threshold
        if seen and sal[y, x] > LABELS.saliency_threshold:
            assert best is not None
            labels[y, x] = 1 + best
        elif seen or sal[y, x] > LABELS.saliency_threshold:
            labels[y, x] = 255
    return labels, np.rint(sal * 255).astype(np.uint8)


@pytest.mark.parametrize("classes", [(0, 2), (1,), ()])
def test_refresh_follows_the_method(classes: tuple[int, ...]) -> None:
    maps = RefinedLabels(Viewer(tiny_net()), LABELS).make(
        SourceSample("a", IMAGE, SALIENCY, classes)
    )
    labels, saliency = reference(classes)
    assert (maps.segmentation != labels).sum() <= 1  # a pixel may lie on a threshold
    assert np.abs(maps.saliency.astype(int) - saliency).max() <= 1
    assert {*np.unique(maps.segmentation)} == {0, 255, *(1 + c for c in classes)}


def test_saliency_is_compared_before_it_is_rounded_for_the_file() -> None:
    source = SourceSample("a", IMAGE, SALIENCY, ())  # no class: what is salient is ignored
    step = float(np.median(RefinedLabels(Viewer(tiny_net()), LABELS).make(source).saliency))
    salient = []
    for threshold in (step - 0.4, step, step + 0.4):  # the same for a rounded map
        config = replace(LABELS, saliency_threshold=threshold / 255)
        labels = RefinedLabels(Viewer(tiny_net()), config).make(source).segmentation
        salient.append(int((labels == 255).sum()))
    assert salient[0] > salient[1] > salient[2]


def test_several_views_are_averaged_before_the_fusion() -> None:
    views = ((1.0, False), (1.0, True), (1.5, False), (1.5, True))
    config = replace(LABELS, refresh_scales=(1.0, 1.5), refresh_flip=True)
    maps = RefinedLabels(Viewer(tiny_net()), config).make(
        SourceSample("a", IMAGE, SALIENCY, (0, 2))
    )
    labels, saliency = reference((0, 2), views)
    assert (maps.segmentation != labels).sum() <= 1
    assert np.abs(maps.saliency.astype(int) - saliency).max() <= 1
    assert (labels != reference((0, 2))[0]).any(), "the test would show nothing"
    assert (labels != reference((0, 2), views[:2])[0]).any()


def test_blocked_affinity_gives_the_same_labels_as_the_dense_one() -> None:
    source = SourceSample("a", IMAGE, SALIENCY, (0, 1))
    dense = RefinedLabels(Viewer(tiny_net()), LABELS).make(source)
    blocked = RefinedLabels(Viewer(tiny_net(row_block=7)), LABELS).make(source)
    assert (dense.segmentation != blocked.segmentation).sum() <= 1
    assert np.abs(dense.saliency.astype(int) - blocked.saliency).max() <= 1


def test_the_network_sees_images_at_image_scale_and_labels_keep_their_size() -> None:
    net = tiny_net()
    seen: list[torch.Size] = []
    net.get_submodule("backbone").register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape)
    )
    maps = RefinedLabels(Viewer(net, image_scale=0.5), LABELS).make(
        SourceSample("a", IMAGE, SALIENCY, (0, 1))
    )
    assert maps.segmentation.shape == maps.saliency.shape == (36, 50)
    assert [tuple(shape[2:]) for shape in seen] == [(18, 25)]


def test_saliency_goes_through_the_crf_where_asked_for() -> None:
    source = SourceSample("a", IMAGE, SALIENCY, (0, 1))
    plain = RefinedLabels(Viewer(tiny_net()), LABELS).make(source)
    refined = RefinedLabels(Viewer(tiny_net()), replace(LABELS, saliency_crf=True)).make(source)
    expected = saliency_crf(IMAGE, (plain.saliency / 255).astype(np.float32))
    assert np.abs(refined.saliency / 255 - expected).max() < 0.02  # `plain` is rounded
    assert np.abs(refined.saliency.astype(int) - plain.saliency).max() > 20
    is_salient = expected > LABELS.saliency_threshold
    known = np.abs(expected - LABELS.saliency_threshold) > 0.02
    assert (np.isin(refined.segmentation, (1, 2)) <= is_salient)[known].all()


def test_sample_without_saliency_is_refused() -> None:
    with pytest.raises(DataError, match="a: has no saliency map"):
        RefinedLabels(Viewer(tiny_net()), LABELS).make(SourceSample("a", IMAGE, None, (0,)))


def test_labels_in_bf16_differ_near_the_thresholds_alone() -> None:
    source = SourceSample("a", IMAGE, SALIENCY, (0, 1))
    exact = RefinedLabels(Viewer(tiny_net()), LABELS).make(source)
    rough = RefinedLabels(Viewer(tiny_net(), precision="bf16"), LABELS).make(source)
    difference = np.abs(exact.saliency.astype(int) - rough.saliency)
    assert 0 < difference.max() < 8, "it computes in bf16, and no worse than that"
    assert (exact.segmentation != rough.segmentation).mean() < 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_labels_made_on_a_gpu_are_those_of_a_cpu() -> None:
    config = replace(LABELS, saliency_crf=True, refresh_scales=(1.0, 1.5), refresh_flip=True)
    source = SourceSample("a", IMAGE, SALIENCY, (0, 1))
    here = RefinedLabels(Viewer(tiny_net()), config).make(source)
    there = RefinedLabels(Viewer(tiny_net().cuda(), "cuda"), config).make(source)
    assert (here.segmentation == there.segmentation).mean() > 0.99
    assert np.abs(here.saliency.astype(int) - there.saliency).max() <= 2
