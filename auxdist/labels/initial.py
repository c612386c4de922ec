"""The first labels: CAMs of the image-level classifier, fused with the off-the-shelf saliency.

Shape legend: C classes, K classes that the image is labelled with, H W image, h w feature map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from auxdist.config import LabelsConfig
from auxdist.data.reader import SourceSample
from auxdist.labels.fuse import agreement, cam_only, fuse, normalise_cam
from auxdist.labels.store import LabelMaps
from auxdist.labels.viewer import Viewer, original_saliency, turned_back


@dataclass(frozen=True)
class InitialLabels:
    """Makes the labels of round 0 (method 2.7, first labels)."""

    viewer: Viewer
    config: LabelsConfig

    @torch.inference_mode()
    def make(self, source: SourceSample) -> LabelMaps:
        """The labels of an image; its saliency is the off-the-shelf map, unchanged.

        Raises:
            DataError: the sample has no saliency map.
        """
        original = original_saliency(source)
        cam = self._cam(source)
        if not cam.isfinite().all():
            return LabelMaps.not_finite(original, with_cam=True)
        saliency = torch.from_numpy(original).to(self.viewer.device) / 255
        threshold = self.config.cam_threshold
        labels = fuse(cam, saliency, source.classes, threshold, self.config.saliency_threshold)
        by_cam = cam_only(cam, source.classes, threshold)
        return LabelMaps(
            labels.cpu().numpy(),
            original,
            by_cam.cpu().numpy(),
            agreement(labels, saliency, self.config.saliency_threshold),
        )

    def _cam(self, source: SourceSample) -> Tensor:
        """(K, H, W): summed over scales and flips, then normalised."""
        size = source.image.shape[:2]
        total = torch.zeros((len(source.classes), *size), device=self.viewer.device)
        if not source.classes:
            return total
        for scale in self.config.cam_scales:
            views = self.viewer.views(source.image, scale, self.config.cam_flip)
            cam = self.viewer.cams(views)[:, list(source.classes)]  # (1 or 2, K, h, w)
            cam = cam.float().clamp_min(0)
            cam = F.interpolate(cam, size, mode="bilinear", align_corners=False)
            for found in turned_back(cam):
                total += found
        return normalise_cam(total)
