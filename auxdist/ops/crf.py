"""Dense CRFs over an image: mean field with Gaussian and bilateral kernels between all pixels.

Kraehenbuehl and Koltun (2011): Q_i(l) ~ exp(-U_i(l) + sum over kernels of compat * (D^-1/2 K D^-1/2
Q)_i(l)), Potts compatibility, K filtered on a permutohedral lattice, D its row sums. Public here:
one image as arrays, on one CPU core (numba); `crf_torch` does batches on any device.

Shape legend: B images, H W pixels, K labels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auxdist.errors import ConfigError, DataError

Floats = NDArray[np.float32]
Array = TypeVar("Array", NDArray[Any], Tensor)


@dataclass(frozen=True)
class Kernels:
    """Both kernels of a dense CRF.

    gaussian_sxy     standard deviation in pixels of the kernel over positions
    gaussian_compat  its weight
    bilateral_sxy    standard deviation in pixels of the kernel over positions and colours
    bilateral_srgb   its standard deviation in colour levels (0..255)
    bilateral_compat its weight

    Raises:
        ConfigError: a standard deviation is not positive or a weight is negative.
    """

    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float

    def __post_init__(self) -> None:
        problems = []
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name.endswith("compat") and not 0 <= value < float("inf"):
                problems.append(f"dense CRF: {name} is {value}, expected 0 or more.")
            if not name.endswith("compat") and not 0 < value < float("inf"):
                problems.append(f"dense CRF: {name} is {value}, expected more than 0.")
        if problems:
            raise ConfigError(problems)


SALIENCY_KERNELS = Kernels(3.0, 3.0, 60.0, 5.0, 5.0)
SEGMENTATION_KERNELS = Kernels(4.0, 3.0, 83.0, 5.0, 3.0)


def saliency_unary(a: Array, tau: float = 1.05, epsilon: float = 1e-8) -> Array:
    """Energies (2, ...) of not salient and salient at saliency `a` (...), an array or a tensor.

    U_0 = -ln(1 - a + epsilon) / (tau s(1 - a)), U_1 = -ln(a + epsilon) / (tau s(a)), s logistic.
    Computed in float64.
    """
    if isinstance(a, Tensor):
        p = torch.stack([1 - a.double(), a.double()])
        return -torch.log(p + epsilon) * (1 + torch.exp(-p)) / tau
    q = np.stack([1 - np.asarray(a, np.float64), np.asarray(a, np.float64)])
    return -np.log(q + epsilon) * (1 + np.exp(-q)) / tau


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
        from auxdist.ops.crf_torch import saliency_crf_batch

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
        from auxdist.ops.crf_torch import segmentation_crf_batch

        batch = torch.from_numpy(image.copy())[None], torch.from_numpy(probabilities.copy())[None]
        return segmentation_crf_batch(*batch, kernels=kernels, iterations=iterations)[0].numpy()
    from auxdist.ops.crf_numba import mean_field

    logits = np.maximum(probabilities, np.finfo(np.float32).tiny, dtype=np.float32)
    np.log(logits, out=logits)
    flat = logits.reshape(len(logits), -1)
    return mean_field(flat, _features(image, kernels), iterations).reshape(logits.shape)


def check_image(image: Any, num_axes: int) -> None:
    """Refuse what is not (.., H, W, 3) uint8 with `num_axes` axes and at least one pixel."""
    expected = {3: "(H, W, 3)", 4: "(B, H, W, 3)"}[num_axes]
    shape = tuple(image.shape)
    if len(shape) != num_axes or shape[-1] != 3 or 0 in shape or "uint8" not in str(image.dtype):
        raise DataError(
            f"dense CRF: image is {shape} {image.dtype}, expected {expected} uint8 RGB with at "
            "least one pixel."
        )


def check_values(name: str, values: Any, shape: tuple[Any, ...]) -> None:
    """Refuse values that are not of `shape` ("K": any number but 0), finite floats and >= 0."""
    found = tuple(values.shape)
    fits = len(found) == len(shape) and all(
        have > 0 if want == "K" else have == want for have, want in zip(found, shape, strict=True)
    )
    if not fits or "float" not in str(values.dtype):
        wanted = ", ".join(str(size) for size in shape)
        raise DataError(
            f"dense CRF: {name} is {found} {values.dtype}, expected ({wanted}) floats, the size "
            "of the image; resize it before."
        )
    lowest, highest = float(values.min()), float(values.max())
    if not (lowest >= 0 and highest < float("inf")):
        raise DataError(
            f"dense CRF: {name} lies between {lowest} and {highest}, expected finite values from "
            "0; pass probabilities, not logits."
        )


def check_saliency(saliency: Any, shape: tuple[Any, ...]) -> None:
    """Refuse saliency that is not of `shape` or, by more than rounding, not in [0, 1]."""
    check_values("saliency", saliency, shape)
    if saliency.max() > 1.001:
        raise DataError(
            f"dense CRF: saliency reaches {float(saliency.max())}, expected values in [0, 1]; "
            "divide 8-bit maps by 255."
        )


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
