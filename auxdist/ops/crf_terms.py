"""What both forms of the dense CRF share: kernels, unary energies, and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auxdist.errors import ConfigError, DataError

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
