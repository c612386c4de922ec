"""What a trained network sees in an image (method 2.9). No image-level labels are used.

Shape legend: C classes, H W image, h w feature map.

The affinity is worked off in blocks of rows, so that its memory grows with the pixels; its time
grows with their square. `Inference.window` bounds both for large images: see windows.py. Beside
the network's own memory, at most two arrays of (C+1, H, W) floats are held at once; the CRF holds
some more, and sees all of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from auxdist.config import Config, Precision
from auxdist.data.augment import rescale
from auxdist.evaluate.windows import Blend, intervals
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.model.precision import computing


@dataclass(frozen=True)
class Inference:
    """How the network looks at an image.

    scales  of the image; at each pixel and class the highest probability over them counts
    crf     refine the probabilities by the segmentation CRF
    window  longest side in pixels of what goes through the network at once; 0: any
    image_scale  multiplies all scales
    precision  of what the network computes
    """

    scales: tuple[float, ...] = (1.0,)
    crf: bool = False
    window: int = 0
    image_scale: float = 1.0
    precision: Precision = "fp32"

    @classmethod
    def single_scale(cls, config: Config) -> Inference:
        """The image as it is in training."""
        wanted, scale = config.evaluate, config.data.image_scale
        return cls(window=wanted.window, image_scale=scale, precision=wanted.precision)

    @classmethod
    def post_processed(cls, config: Config) -> Inference:
        """Several scales and the CRF."""
        wanted, scale = config.evaluate, config.data.image_scale
        return cls(wanted.scales, wanted.crf, wanted.window, scale, wanted.precision)

    @property
    def text(self) -> str:
        """For people: what differs from whole images at a single scale."""
        words = [f"scales {', '.join(f'{s:g}' for s in self.scales)}"] * (self.scales != (1.0,))
        words += [f"images at {self.image_scale:g} of their size"] * (self.image_scale != 1)
        words += [self.precision] * (self.precision != "fp32")
        words += ["CRF"] * self.crf + [f"windows of {self.window} pixels"] * (self.window > 0)
        return "; ".join(words)


SINGLE_SCALE = Inference()


def predict(
    net: AuxSegNet,
    image: np.ndarray,
    device: str | torch.device,
    inference: Inference = SINGLE_SCALE,
) -> np.ndarray:
    """Labels of an image: at each pixel the class of highest probability.

    Args:
        net: in eval mode, on `device`
        image: (H, W, 3) uint8 RGB

    Returns:
        (H, W) uint8: 0 background, 1..C
    """
    found = probabilities(net, image, device, inference)
    if inference.crf:
        from auxdist.ops.crf import refined_probabilities

        found = refined_probabilities(image, found)
    return found.argmax(dim=0).to(torch.uint8).cpu().numpy()


@torch.inference_mode()
def probabilities(
    net: AuxSegNet,
    image: np.ndarray,
    device: str | torch.device,
    inference: Inference = SINGLE_SCALE,
) -> Tensor:
    """(C+1, H, W) on `device`, before the CRF; for several scales they do not sum to 1.

    At each scale Pref_seg -> bilinear to H W -> softmax; then the maximum over the scales.
    """
    highest: Tensor | None = None
    for scale in inference.scales:
        seen = rescale(image, scale * inference.image_scale)
        with computing(device, inference.precision):
            logits = _logits(net, seen, device, inference.window)
        found = _softmax(_upsample(logits, image.shape[:2]))
        highest = found if highest is None else torch.maximum(highest, found, out=highest)
        del found  # else the next scale would be the third array in memory
    assert highest is not None
    return highest


def _logits(net: AuxSegNet, image: np.ndarray, device: str | torch.device, window: int) -> Tensor:
    """Pref_seg of an image: (C+1, h, w)."""

    def seen(part: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None].to(device)
        logits: Tensor = net(net.prepare(pixels)).segmentation_refined[0]
        return logits.float()

    stride = net.backbone.stride
    rows, columns = (intervals(length, window, stride) for length in image.shape[:2])
    if len(rows) == len(columns) == 1:
        return seen(image)
    blend = Blend(image.shape[:2], stride)
    for top, bottom in rows:
        for left, right in columns:
            blend.add(top, left, seen(image[top:bottom, left:right]))
    return blend.mean()


def _upsample(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the first axis, in place: these are the largest arrays of all."""
    logits -= logits.amax(dim=0)
    logits.exp_()
    logits /= logits.sum(dim=0)
    return logits
