"""Dense CRFs over an image: mean field with Gaussian and bilateral kernels between all pixels.

Kraehenbuehl and Koltun (2011): Q_i(l) ~ exp(-U_i(l) + sum over kernels of compat * (D^-1/2 K D^-1/2
Q)_i(l)), Potts compatibility, K filtered on a permutohedral lattice, D its row sums. Public here:
one image as arrays, on one CPU core (numba), or as tensors where they are; `crf_torch` does batches
on any device.

Shape legend: B images, H W pixels, K labels.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
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
from auxdist.ops.crf_torch import saliency_crf_batch, segmentation_crf_batch

Floats = NDArray[np.float32]


def saliency_crf(
    image: NDArray[np.uint8],
    saliency: Floats,
    *,
    kernels: Kernels = SALIENCY_KERNELS,
    iterations: int = 1,
    tau: float = 1.05,
    epsilon: float = 1e-8,
) -> Floats:
    """Probability (H, W) that each pixel is salient, of saliency (H, W) in [0, 1].

    `image` is (H, W, 3) uint8 RGB. Memory: about 200 bytes a pixel.

    Raises:
        DataError: shapes or types do not fit, or the saliency leaves [0, 1].
    """
    check_image(image, 3)
    check_saliency(saliency, image.shape[:2])
    if not _has_numba():
        batch = torch.from_numpy(image.copy())[None], torch.from_numpy(saliency.copy())[None]
        return saliency_crf_batch(
            *batch, kernels=kernels, iterations=iterations, tau=tau, epsilon=epsilon
        )[0].numpy()
    from auxdist.ops.crf_numba import binary_mean_field

    unary = saliency_unary(saliency.clip(max=1), tau, epsilon)
    log_odds = (unary[0] - unary[1]).astype(np.float32).ravel()
    log_odds = binary_mean_field(log_odds, _features(image, kernels), iterations)
    return (1 / (1 + np.exp(-log_odds.clip(-80, 80)))).reshape(saliency.shape)


def segmentation_crf(
    image: NDArray[np.uint8],
    probabilities: Floats,
    *,
    kernels: Kernels = SEGMENTATION_KERNELS,
    iterations: int = 10,
) -> Floats:
    """Marginals (K, H, W) of class probabilities (K, H, W); these need not sum to 1.

    `image` is (H, W, 3) uint8 RGB; the unary energy is -ln p. Marginals under exp(-60) are 0.
    Memory: about 130 + 13 K bytes a pixel.

    Raises:
        DataError: shapes or types do not fit, or a probability is negative or not finite.
    """
    check_image(image, 3)
    check_values("probabilities", probabilities, ("K", *image.shape[:2]))
    if not _has_numba():
        batch = torch.from_numpy(image.copy())[None], torch.from_numpy(probabilities.copy())[None]
        return segmentation_crf_batch(*batch, kernels=kernels, iterations=iterations)[0].numpy()
    from auxdist.ops.crf_numba import mean_field

    logits = np.maximum(probabilities, np.finfo(np.float32).tiny, dtype=np.float32)
    np.log(logits, out=logits)
    flat = logits.reshape(len(logits), -1)
    return mean_field(flat, _features(image, kernels), iterations).reshape(logits.shape)


def refined_saliency(image: NDArray[np.uint8], saliency: Tensor) -> Tensor:
    """`saliency_crf` of a tensor (H, W), on its device: a GPU works there, a CPU by numba."""
    if not saliency.is_cuda:
        return torch.from_numpy(saliency_crf(np.ascontiguousarray(image), saliency.numpy()))
    return saliency_crf_batch(_pixels(image, saliency), saliency[None])[0]


def refined_probabilities(image: NDArray[np.uint8], probabilities: Tensor) -> Tensor:
    """`segmentation_crf` of a tensor (K, H, W), on its device likewise."""
    if not probabilities.is_cuda:
        return torch.from_numpy(
            segmentation_crf(np.ascontiguousarray(image), probabilities.numpy())
        )
    return segmentation_crf_batch(_pixels(image, probabilities), probabilities[None])[0]


def _pixels(image: NDArray[np.uint8], values: Tensor) -> Tensor:
    """(1, H, W, 3) on the device of the values."""
    return torch.from_numpy(np.ascontiguousarray(image))[None].to(values.device)


def _features(image: NDArray[np.uint8], kernels: Kernels) -> list[tuple[Floats, float]]:
    """Each kernel's features (d, N) in standard deviations, and its weight."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    position = np.stack([columns, rows]).reshape(2, -1)
    colour = image.reshape(-1, 3).T / np.float32(kernels.bilateral_srgb)
    bilateral = np.concatenate([position / np.float32(kernels.bilateral_sxy), colour])
    return [
        (position / np.float32(kernels.gaussian_sxy), kernels.gaussian_compat),
        (bilateral, kernels.bilateral_compat),
    ]


def _has_numba() -> bool:
    if find_spec("numba") is not None:
        return True
    warnings.warn(
        "numba is not installed: dense CRFs run in torch, several times slower on a CPU; "
        "pip install numba.",
        stacklevel=3,
    )
    return False
