"""Geometry of the permutohedral lattice (Adams, Baek and Davis, 2010), shared by its two forms.

A point of d features is embedded in the hyperplane x_0 + .. + x_d = 0 of d+1 dimensions and lies
in one simplex of the lattice; each of the simplex' d+1 vertices has another remainder ("colour")
r modulo d+1. Coordinate i of a vertex is (d+1) q_i + r, so that colour and quotients q name it.
Quotients 0..d-1 (the last one follows) are packed into one integer key by a mixed radix.

Shape legend: N points, d features, M lattice vertices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from auxdist.errors import DataError

_MARGIN = 4  # quotients leave the points' range by rounding, by colour and by one step of the blur
_MAX_KEYS = 2**60  # leaves room in 64 bits for the colour and, batched, the image


@dataclass(frozen=True)
class Geometry:
    """How d-dimensional features are embedded, and how vertices are numbered by integer keys.

    scale    (d,) factor of each feature before the embedding
    low      (d,) smallest quotient that a key can hold
    stride   (d,) what one step of each quotient adds to a key
    num_keys keys of one colour are 0..num_keys-1
    """

    scale: tuple[float, ...]
    low: tuple[int, ...]
    stride: tuple[int, ...]
    num_keys: int

    def steps(self, colour: int) -> list[int]:
        """What to add to a key for the neighbour against each of the d+1 directions.

        The neighbour has coordinates x - 1 and, along the direction itself, x + d; its colour is
        colour - 1, or d where colour is 0, and then all its quotients are smaller by one.
        """
        borrow = sum(self.stride) if colour == 0 else 0
        return [stride - borrow for stride in (*self.stride, 0)]


def geometry(lowest: Sequence[float], highest: Sequence[float]) -> Geometry:
    """The embedding of features that lie between `lowest` and `highest`, both (d,).

    The factors make the whole filter (splat, blur, slice) a Gaussian of standard deviation 1.

    Raises:
        DataError: the features span too many lattice cells to be numbered in 64 bits.
    """
    d = len(lowest)
    # Rounded as the usual implementation does: equal colours tie in the embedding, and there the
    # last bit of the scale decides which vertices exist.
    deviation = float(np.float32(math.sqrt(2 / 3) * (d + 1)))
    scale = tuple(1 / math.sqrt((i + 1) * (i + 2)) * deviation for i in range(d))
    lows, spans = [], []
    for i in range(d):
        # coordinate i is the sum of the scaled features i.. minus i times feature i-1
        before = scale[i - 1] * i
        smallest = sum(scale[j] * lowest[j] for j in range(i, d)) - before * highest[i - 1]
        largest = sum(scale[j] * highest[j] for j in range(i, d)) - before * lowest[i - 1]
        lows.append(math.floor(smallest / (d + 1)) - _MARGIN)
        spans.append(math.ceil(largest / (d + 1)) + _MARGIN - lows[-1])
    if math.prod(spans) > _MAX_KEYS:
        raise DataError(
            f"permutohedral lattice: features between {list(lowest)} and {list(highest)} standard "
            f"deviations span {math.prod(spans):.1e} cells, at most {_MAX_KEYS:.1e} can be "
            "numbered; use wider kernels (a larger sxy or srgb)."
        )
    stride = tuple(math.prod(spans[i + 1 :]) for i in range(d))
    return Geometry(scale, tuple(lows), stride, math.prod(spans))


def filter_gain(num_features: int) -> float:
    """What splat, blur and slice multiply a constant by, on an endless lattice: 1 + 2^-d."""
    return 1 + 2.0**-num_features
