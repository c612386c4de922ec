"""The labels after a round of training: refined CAMs and saliency, fused anew.

Shape legend: C classes, K classes that the image is labelled with, H W image, h w feature map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from auxdist.config import LabelsConfig
from auxdist.data.reader import SourceSample
from auxdist.labels.fuse import agreement, fuse, normalise_cam
from auxdist.labels.statistics import Mixture
from auxdist.labels.store import LabelMaps
from auxdist.labels.viewer import Viewer, original_saliency
from auxdist.records import Outputs


@dataclass(frozen=True)
class RefinedLabels:
    """Makes the labels that follow a round (method 2.7, update).

    The network sees the whole image at once.
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
        outputs = self.viewer.outputs(self.viewer.view(source.image)[None])
        cam = self._refined_cam(outputs, source)
        saliency = self._saliency(outputs, original)
        if not (cam.isfinite().all() and saliency.isfinite().all()):
            return LabelMaps.not_finite(original.shape)
        if self.config.saliency_crf:
            saliency = _crf(source.image, saliency)
        labels = fuse(
            cam,
            saliency,
            source.classes,
            self.config.cam_threshold,
            self.config.saliency_threshold,
        )
        stored = (saliency * 255).round().to(torch.uint8)
        mixing = outputs.affinity.mixing()
        return LabelMaps(
            labels.cpu().numpy(),
            stored.cpu().numpy(),
            agreement=agreement(labels, saliency, self.config.saliency_threshold),
            mixture=Mixture.of(mixing.mean, mixing.std) if mixing else Mixture(),
        )

    def _refined_cam(self, outputs: Outputs, source: SourceSample) -> Tensor:
        """(K, H, W): A_CT cam of the labelled classes, not normalised again."""
        size = source.image.shape[:2]
        if not source.classes:
            return torch.zeros((0, *size), device=self.viewer.device)
        cam = normalise_cam(outputs.cam[0, list(source.classes)])  # (K, h, w)
        return _upsample(outputs.affinity.apply(cam[None]), size)[0]

    def _saliency(self, outputs: Outputs, original: np.ndarray) -> Tensor:
        """(H, W): mean of the predicted and the off-the-shelf map, in [0, 1]."""
        given = torch.from_numpy(original).to(self.viewer.device) / 255
        if outputs.saliency_refined is None:
            return given
        predicted = outputs.saliency_refined.float().sigmoid()
        return (_upsample(predicted, original.shape)[0, 0] + given) / 2


def _crf(image: np.ndarray, saliency: Tensor) -> Tensor:
    from auxdist.ops.crf import saliency_crf

    return torch.from_numpy(saliency_crf(image, saliency.cpu().numpy())).to(saliency.device)


def _upsample(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
