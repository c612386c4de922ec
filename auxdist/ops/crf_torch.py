"""Dense CRFs of a batch of images in plain torch, on any device: the equations of `crf`.

Shape legend: B images, H W pixels, K labels, P = B * H * W points, d features of a kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from auxdist.ops.crf_terms import (
    SALIENCY_KERNELS,
    SEGMENTATION_KERNELS,
    Kernels,
    check_image,
    check_saliency,
    check_values,
    saliency_unary,
)
from auxdist.ops.permutohedral_torch import Lattice, build


@torch.no_grad()
def saliency_crf_batch(
    images: Tensor,
    saliency: Tensor,
    *,
    kernels: Kernels = SALIENCY_KERNELS,
    iterations: int = 1,
    tau: float = 1.05,
    epsilon: float = 1e-8,
) -> Tensor:
    """Probability (B, H, W) that each pixel is salient, of saliency (B, H, W) in [0, 1].

    `images` is (B, H, W, 3) uint8 RGB on the same device. Memory: about 800 bytes a pixel.

    Raises:
        DataError: shapes or types do not fit, or the saliency leaves [0, 1].
    """
    check_image(images, 4)
    check_saliency(saliency, tuple(images.shape[:3]))
    unary = saliency_unary(saliency.clamp(max=1), tau, epsilon)
    start = (unary[0] - unary[1]).float().reshape(-1, 1)
    lattices = _lattices(images, kernels)
    log_odds = start
    for _ in range(iterations):
        # Q sums to 1: both messages follow from Q_1 - Q_0
        difference = torch.tanh(log_odds * 0.5)
        log_odds = start + sum(lattice.filter(difference) for lattice in lattices)
    return torch.sigmoid(log_odds).reshape(saliency.shape)


@torch.no_grad()
def segmentation_crf_batch(
    images: Tensor,
    probabilities: Tensor,
    *,
    kernels: Kernels = SEGMENTATION_KERNELS,
    iterations: int = 10,
) -> Tensor:
    """Marginals (B, K, H, W) of class probabilities (B, K, H, W); these need not sum to 1.

    `images` is (B, H, W, 3) uint8 RGB on the same device. Memory: about 700 + 25 K bytes a pixel.

    Raises:
        DataError: shapes or types do not fit, or a probability is negative or not finite.
    """
    check_image(images, 4)
    size = tuple(images.shape[:3])
    check_values("probabilities", probabilities, (size[0], "K", *size[1:]))
    logits = probabilities.float().clamp(min=torch.finfo(torch.float32).tiny).log()
    logits = logits.movedim(1, -1).flatten(0, 2)  # (P, K)
    lattices = _lattices(images, kernels)
    marginals = logits.softmax(1)
    for _ in range(iterations):
        messages = sum(lattice.filter(marginals) for lattice in lattices)
        marginals = (logits + messages).softmax(1)
    return marginals.unflatten(0, size).movedim(-1, 1).contiguous()


def _lattices(images: Tensor, kernels: Kernels) -> list[Lattice]:
    """The Gaussian and the bilateral kernel, normalised and weighted."""
    num_images, height, width = images.shape[:3]
    rows = torch.arange(height, device=images.device).float()[:, None].expand(height, width)
    columns = torch.arange(width, device=images.device).float().expand(height, width)
    position = torch.stack([columns, rows]).flatten(1).repeat(1, num_images)  # (2, P)
    colour = _over(images.reshape(-1, 3).T.float(), kernels.bilateral_srgb)
    bilateral = torch.cat([_over(position, kernels.bilateral_sxy), colour])
    gaussian = build(_over(position, kernels.gaussian_sxy), num_images)
    return [
        gaussian.normalised(kernels.gaussian_compat),
        build(bilateral, num_images).normalised(kernels.bilateral_compat),
    ]


def _over(values: Tensor, deviation: float) -> Tensor:
    """values / deviation, to the last bit: it decides which vertices of the lattice exist.

    On a GPU a division by a Python number is a product with its rounded reciprocal.
    """
    return values / values.new_tensor(deviation)
