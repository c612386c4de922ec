"""What a trained network sees in an image. No image-level labels are used.

Shape legend: C classes, H W image, h w feature map.

The whole image goes through the network at once. The affinity is worked off in blocks of rows, so
memory grows with the pixels, not with their square; time still does. See
model.affinity.row_block.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from auxdist.model.auxsegnet import AuxSegNet


def predict(net: AuxSegNet, image: np.ndarray, device: str | torch.device) -> np.ndarray:
    """Labels of an image at a single scale (method 2.9): the class of highest probability.

    Args:
        net: in eval mode, on `device`
        image: (H, W, 3) uint8 RGB

    Returns:
        (H, W) uint8: 0 background, 1..C
    """
    labels = probabilities(net, image, device).argmax(dim=0)
    return labels.to(torch.uint8).cpu().numpy()


@torch.inference_mode()
def probabilities(net: AuxSegNet, image: np.ndarray, device: str | torch.device) -> Tensor:
    """(C+1, H, W) softmax over the classes, on `device`: Pref_seg -> bilinear -> softmax."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(device)
    logits = net(net.prepare(pixels)).segmentation_refined  # (1, C+1, h, w)
    size = image.shape[:2]
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)[0].softmax(0)
