"""Fusion of CAMs and saliency (method 2.7, step 4)."""

import pytest
import torch

from auxdist.labels.fuse import agreement, cam_only, fuse, normalise_cam
from auxdist.labels.statistics import Agreement

CAM, SALIENCY = 0.2, 0.06


def test_truth_table_of_the_fusion() -> None:
    # columns: both see an object, only the CAM, only the saliency, neither, both just at threshold
    cam = torch.tensor([[[0.21, 0.9, 0.2, 0.0, 0.2]]])
    saliency = torch.tensor([[0.07, 0.06, 0.5, 0.06, 0.06]])
    assert fuse(cam, saliency, (4,), CAM, SALIENCY).tolist() == [[5, 255, 255, 0, 0]]


def test_agreement_counts_who_sees_an_object() -> None:
    cam = torch.tensor([[[0.21, 0.9, 0.2, 0.0, 0.2, 0.9]]])
    saliency = torch.tensor([[0.07, 0.06, 0.5, 0.06, 0.06, 0.01]])
    labels = fuse(cam, saliency, (4,), CAM, SALIENCY)
    found = agreement(labels, saliency, SALIENCY)
    assert found == Agreement(both=1, only_cam=2, only_saliency=1, neither=2)
    assert found.iou == 1 / 4


def test_strongest_of_the_labelled_classes_wins() -> None:
    cam = torch.tensor([[[0.9, 0.3, 0.5]], [[0.8, 0.4, 0.5]]])
    labels = fuse(cam, torch.ones(1, 3), (2, 19), CAM, SALIENCY)
    assert labels.tolist() == [[3, 20, 3]]  # the first class where both are equal
    assert labels.dtype == torch.uint8


def test_image_without_classes_ignores_what_is_salient() -> None:
    saliency = torch.tensor([[0.0, 0.06, 0.061, 1.0]])
    assert fuse(torch.zeros(0, 1, 4), saliency, (), CAM, SALIENCY).tolist() == [[0, 0, 255, 255]]


def test_cam_only_labels_need_no_saliency() -> None:
    cam = torch.tensor([[[0.9, 0.3, 0.1]], [[0.8, 0.4, 0.2]]])
    assert cam_only(cam, (0, 1), CAM).tolist() == [[1, 2, 0]]
    assert cam_only(torch.zeros(0, 1, 2), (), CAM).tolist() == [[0, 0]]


def test_normalised_maps_have_a_maximum_just_below_one() -> None:
    cam = torch.tensor([[[-1.0, 2.0, 4.0]], [[-3.0, -2.0, -1.0]]])
    normal = normalise_cam(cam)
    assert normal[0, 0].tolist() == pytest.approx([0, 2 / 4.00001, 4 / 4.00001])
    assert normal[1].tolist() == [[0.0, 0.0, 0.0]]


def test_maps_and_classes_must_match() -> None:
    with pytest.raises(ValueError, match="2 maps for 1 classes"):
        fuse(torch.zeros(2, 1, 1), torch.zeros(1, 1), (0,), CAM, SALIENCY)
