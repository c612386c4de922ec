"""Losses as sums over a rank's rows, divided by the size of the global batch (method.md 2.4).

So the terms of ranks and of micro-batches add up to the loss of the global batch.
Shape legend: see records.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from auxdist.ops.affinity import widen
from auxdist.records import IGNORE, Batch, Normaliser


def count(batch: Batch) -> Tensor:
    """(3,) float64: samples, saliency pixels and segmentation pixels; sum it over all ranks.

    The three sums are the fields of `Normaliser`, in order. Rows of weight 0 count 0.
    """
    weight = batch.weight.double()
    saliency = (batch.saliency != IGNORE).sum((1, 2)) * weight
    segmentation = (batch.segmentation != IGNORE).sum((1, 2)) * weight
    return torch.stack([weight.sum(), saliency.sum(), segmentation.sum()])


def class_loss(logits: Tensor, batch: Batch, normaliser: Normaliser) -> Tensor:
    """Multi-label soft margin, mean over samples and classes. (B, C) logits."""
    each = F.binary_cross_entropy_with_logits(
        widen(logits), batch.classes.to(widen(logits).dtype), reduction="none"
    )
    return _mean(each.mean(1), batch, normaliser.samples)


def saliency_loss(logits: Tensor, batch: Batch, normaliser: Normaliser) -> Tensor:
    """Binary cross entropy, mean over pixels that are not ignored. (B, 1, h, w) logits."""
    full = upsample(logits, batch.saliency)[:, 0]  # (B, S, S)
    known = batch.saliency != IGNORE
    target = torch.where(known, batch.saliency, 0).to(full.dtype)
    each = F.binary_cross_entropy_with_logits(full, target, reduction="none") * known
    return _mean(each.sum((1, 2)), batch, normaliser.saliency_pixels)


def segmentation_loss(logits: Tensor, batch: Batch, normaliser: Normaliser) -> Tensor:
    """Cross entropy, mean over pixels that are not ignored. (B, C+1, h, w) logits."""
    full = upsample(logits, batch.segmentation)
    each = F.cross_entropy(full, batch.segmentation.long(), ignore_index=IGNORE, reduction="none")
    return _mean(each.sum((1, 2)), batch, normaliser.segmentation_pixels)


def upsample(logits: Tensor, like: Tensor) -> Tensor:
    """(B, K, h, w) -> (B, K, H, W), the size of `like` (..., H, W); bilinear, in fp32 at least."""
    size = (like.shape[-2], like.shape[-1])
    return F.interpolate(widen(logits), size=size, mode="bilinear", align_corners=False)


def _mean(sums: Tensor, batch: Batch, total: float) -> Tensor:
    """(B,) sums by row -> their share in the mean over the global batch; 0 where that is empty."""
    return (sums * batch.weight.to(sums.dtype)).sum() / (total if total > 0 else 1.0)
