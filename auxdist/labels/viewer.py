"""What both makers of labels begin with: a network that looks at images, and the given saliency."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from auxdist.config import Precision
from auxdist.data.augment import rescale
from auxdist.data.reader import SourceSample
from auxdist.errors import DataError
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.model.precision import computing
from auxdist.records import Outputs


@dataclass(frozen=True)
class Viewer:
    """A network in eval mode on `device`, which sees images at `image_scale`."""

    net: AuxSegNet
    device: str = "cpu"
    image_scale: float = 1.0
    precision: Precision = "fp32"

    def views(self, image: np.ndarray, scale: float, mirrored: bool) -> Tensor:
        """(H, W, 3) uint8 -> (1, 3, H', W') uint8, or (2, ...) with the mirrored image second.

        On the device, resized by scale * image_scale.
        """
        seen = rescale(image, scale * self.image_scale)
        view = torch.from_numpy(seen).permute(2, 0, 1).to(self.device)
        return torch.stack([view, view.flip(-1)]) if mirrored else view[None]

    def outputs(self, views: Tensor) -> Outputs:
        """What the network sees in views (B, 3, H', W')."""
        with computing(self.device, self.precision):
            outputs: Outputs = self.net(self.net.prepare(views))
        return outputs

    def cams(self, views: Tensor) -> Tensor:
        """Raw CAMs (B, C, h, w) of views (B, 3, H', W'), by the classification branch alone."""
        with computing(self.device, self.precision):
            return self.net.classify(self.net.prepare(views), None)[1]


def turned_back(maps: Tensor) -> tuple[Tensor, ...]:
    """The maps (1 or 2, ..., W) of `views`, each the way the image lies."""
    return (maps[0], maps[1].flip(-1)) if len(maps) == 2 else (maps[0],)


def original_saliency(source: SourceSample) -> np.ndarray:
    """(H, W) uint8 off-the-shelf saliency of a sample.

    Raises:
        DataError: the sample has none.
    """
    if source.saliency is None:
        raise DataError(
            f"{source.key}: has no saliency map (sal.png), and pseudo labels need one; build the "
            "shards with a saliency folder or --saliency-model."
        )
    return source.saliency
