"""From class activation maps and saliency to pseudo labels, by thresholds alone.

Shape legend: C classes, K classes that the image is labelled with, H W image, h w feature map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from auxdist.labels.statistics import Agreement
from auxdist.records import IGNORE

EPSILON = 1e-5
"""Added to the maximum that a map is divided by."""


def normalise_cam(cam: Tensor) -> Tensor:
    """ReLU, then each map divided by its maximum + 1e-5: (..., h, w) -> (..., h, w) in [0, 1)."""
    positive = cam.clamp_min(0)
    return positive / (positive.amax(dim=(-2, -1), keepdim=True) + EPSILON)


def fuse(
    cam: Tensor,
    saliency: Tensor,
    classes: Sequence[int],
    cam_threshold: float,
    saliency_threshold: float,
) -> Tensor:
    """The pseudo label of an image (method 2.7, step 4).

    With m the maximum over the maps, an object is seen by the CAMs where m > cam_threshold and by
    the saliency where saliency > saliency_threshold. Both: 1 + the class of the maximum; exactly
    one: 255, ignore; neither: 0, background.

    Args:
        cam: (K, H, W) normalised maps of the labelled classes only
        saliency: (H, W) in [0, 1]
        classes: the K classes, 0..C-1, in the order of the maps

    Returns:
        (H, W) uint8 labels
    """
    labels, is_object = _strongest(cam, classes, cam_threshold)
    is_salient = saliency > saliency_threshold
    labels[is_object != is_salient] = IGNORE
    return labels


def agreement(labels: Tensor, saliency: Tensor, saliency_threshold: float) -> Agreement:
    """How far the CAMs and the saliency that `fuse` made `labels` from see the same objects.

    labels (H, W) and saliency (H, W) as of `fuse`.
    """
    is_ignored = labels == IGNORE
    is_salient = saliency > saliency_threshold
    parts = (
        (labels > 0) & ~is_ignored,
        is_ignored & ~is_salient,
        is_ignored & is_salient,
        labels == 0,
    )
    return Agreement(*torch.stack([part.sum() for part in parts]).tolist())


def cam_only(cam: Tensor, classes: Sequence[int], cam_threshold: float) -> Tensor:
    """Labels without saliency, for comparison: 1 + class where m > cam_threshold, else background.

    cam (K, H, W) as for `fuse`; returns (H, W) uint8.
    """
    return _strongest(cam, classes, cam_threshold)[0]


def _strongest(cam: Tensor, classes: Sequence[int], threshold: float) -> tuple[Tensor, Tensor]:
    """(H, W) uint8 label of the strongest map, 0 at or below `threshold`, and where it is above."""
    if len(classes) != len(cam):
        raise ValueError(f"{len(cam)} maps for {len(classes)} classes")
    if not len(cam):
        nothing = torch.zeros(cam.shape[1:], dtype=torch.uint8, device=cam.device)
        return nothing, nothing.bool()
    strength, which = cam.max(dim=0)
    values = torch.tensor([1 + c for c in classes], dtype=torch.uint8, device=cam.device)
    is_object = strength > threshold
    return values[which] * is_object, is_object
