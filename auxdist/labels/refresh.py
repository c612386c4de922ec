"""The labels after a round of training: refined CAMs and saliency, fused anew.

Shape legend: C classes, K classes that the image is labelled with, H W image, h w feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from auxdist.config import LabelsConfig
from auxdist.data.reader import SourceSample
from auxdist.labels.fuse import agreement, fuse, normalise_cam
from auxdist.labels.statistics import Mixture
from auxdist.labels.store import LabelMaps
from auxdist.labels.viewer import Viewer, original_saliency, turned_back
from auxdist.records import Outputs


@dataclass(frozen=True)
class RefinedLabels:
    """Makes the labels that follow a round (method 2.7, update).

    The network sees the whole image at once. Published is one view, at scale 1; of several scales,
    or with the mirrored image, refined CAMs and saliency are averaged before the fusion.
    """

    viewer: Viewer
    config: LabelsConfig

    @torch.inference_mode()
    def make(self, source: SourceSample) -> LabelMaps:
        """The labels of an image.

        Raises:
            DataError: the sample has no saliency map.
        """
        original = original_saliency(source)
        cam, predicted, mixture = self._look(source)
        saliency = torch.from_numpy(original).to(self.viewer.device) / 255
        if predicted is not None:
            saliency = (predicted + saliency) / 2
        if not (cam.isfinite().all() and saliency.isfinite().all()):
            return LabelMaps.not_finite(original)
        if self.config.saliency_crf:
            from auxdist.ops.crf import refined_saliency

            saliency = refined_saliency(source.image, saliency)
        labels = fuse(
            cam,
            saliency,
            source.classes,
            self.config.cam_threshold,
            self.config.saliency_threshold,
        )
        stored = (saliency * 255).round().to(torch.uint8)
        return LabelMaps(
            labels.cpu().numpy(),
            stored.cpu().numpy(),
            agreement=agreement(labels, saliency, self.config.saliency_threshold),
            mixture=mixture,
        )

    def _look(self, source: SourceSample) -> tuple[Tensor, Tensor | None, Mixture]:
        """Refined CAMs (K, H, W), refined saliency (H, W) if there is any, weights of A_CT."""
        size = source.image.shape[:2]
        cams: list[Tensor] = []
        saliencies: list[Tensor] = []
        mixture = Mixture()
        for scale in self.config.refresh_scales:
            views = self.viewer.views(source.image, scale, self.config.refresh_flip)
            outputs = self.viewer.outputs(views)
            cams += turned_back(_refined_cams(outputs, source.classes, size))
            if outputs.saliency_refined is not None:
                saliency = outputs.saliency_refined.float().sigmoid()
                saliencies += turned_back(_upsample(saliency, size)[:, 0])
            if mixing := outputs.affinity.mixing():
                mixture += Mixture.of(mixing.mean, mixing.std)
        return _mean(cams), _mean(saliencies) if saliencies else None, mixture


def _refined_cams(outputs: Outputs, classes: Sequence[int], size: tuple[int, ...]) -> Tensor:
    """(B, K, H, W): A_CT cam of the labelled classes, not normalised again."""
    if not classes:
        return outputs.cam.new_zeros((len(outputs.cam), 0, *size))
    cams = normalise_cam(outputs.cam[:, list(classes)])  # (B, K, h, w)
    return _upsample(outputs.affinity.apply(cams), size)


def _mean(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(maps)).mean(0) if len(maps) > 1 else maps[0]


def _upsample(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
