"""Mean field of dense CRFs on one CPU core. Compiled by numba, single-threaded, without the GIL.

Shape legend: K labels, S labels padded to a multiple of lanes.WIDTH, N points, M vertices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxdist.ops.lanes import (
    WIDTH,
    add,
    add_scaled,
    exp_below,
    highest,
    larger,
    load,
    scaled,
    store,
    total,
)
from auxdist.ops.permutohedral_numba import Floats, Integers, build, compiled

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_NO_LABEL = np.float32(-1e30)  # log-probability of the labels that only fill up


def binary_mean_field(
    log_odds: Floats, kernels: Sequence[tuple[Floats, float]], iterations: int
) -> Floats:
    """Log-odds (N,) of label 1 of two after mean field; `kernels` are (features (d, N), compat).

    Q sums to 1, so both messages follow from Q_1 - Q_0 = tanh(log-odds / 2): one filter of one
    channel instead of two.
    """
    lattices = [build(features).normalised(compat) for features, compat in kernels]
    result = log_odds
    for _ in range(iterations):
        difference = np.tanh(result * _HALF)
        result = log_odds.copy()
        for lattice in lattices:
            result += lattice.filter(difference)
    return result


def mean_field(
    log_probabilities: Floats, kernels: Sequence[tuple[Floats, float]], iterations: int
) -> Floats:
    """Marginals (K, N) of a Potts CRF; `kernels` are (features (d, N), compat >= 0)."""
    num_labels, num_points = log_probabilities.shape
    width = -(-num_labels // WIDTH) * WIDTH
    logits = np.full((num_points, width), _NO_LABEL)  # (N, S)
    logits[:, :num_labels] = log_probabilities.T
    lattices = [build(features).normalised(compat) for features, compat in kernels]
    firsts = np.cumsum([0] + [lattice.num_vertices + 1 for lattice in lattices])
    vertices = np.concatenate(
        [part.vertices + np.int32(first) for part, first in zip(lattices, firsts, strict=False)],
        axis=1,
    )
    weights = np.concatenate([lattice.weights for lattice in lattices], axis=1)
    blurs = [lattice.neighbours for lattice in lattices]
    del lattices
    _iterate(logits.reshape(-1), vertices, weights, blurs, firsts * width, iterations)
    return np.ascontiguousarray(logits[:, :num_labels].T)


def _iterate(
    logits: Floats,
    vertices: Integers,
    weights: Floats,
    blurs: Sequence[Integers],
    firsts: NDArray[np.int64],
    iterations: int,
) -> None:
    """Turn `logits` (N * S,) into marginals; lattice i starts at element firsts[i]."""
    width = len(logits) // len(vertices)
    messages, sums = np.zeros(firsts[-1], np.float32), np.zeros(firsts[-1], np.float32)
    for _ in range(iterations):
        _exchange(logits, vertices, weights, messages, sums, width)
        for neighbours, first, stop in zip(blurs, firsts[:-1], firsts[1:], strict=True):
            _blur(neighbours, sums[first:stop], messages[first:stop], width)
        messages, sums = sums, messages
        sums.fill(0)
    _conclude(logits, vertices, weights, messages, width)


@compiled
def _marginals(
    logits: Any, i: Any, vertices: Any, weights: Any, messages: Any, width: Any, q: Any
) -> Any:
    """q (S,) = exp(logits of point i + its messages - their maximum); 1 / the sum of q."""
    top = load(logits, i * width)
    for label in range(0, width, WIDTH):
        value = load(logits, i * width + label)
        for k in range(vertices.shape[1]):
            message = load(messages, vertices[i, k] * width + label)
            value = add_scaled(value, weights[i, k], message)
        store(q, label, value)
        top = larger(top, value) if label else value
    peak = highest(top)
    sums = scaled(_ZERO, top)
    for label in range(0, width, WIDTH):
        value = exp_below(load(q, label), peak)
        store(q, label, value)
        sums = add(sums, value)
    return _ONE / total(sums)


@compiled
def _exchange(
    logits: Any, vertices: Any, weights: Any, messages: Any, sums: Any, width: Any
) -> None:
    """One pass over the points: slice, softmax, splat. The marginals never reach memory."""
    q = np.empty(width, np.float32)
    for i in range(vertices.shape[0]):
        norm = _marginals(logits, i, vertices, weights, messages, width, q)
        for k in range(vertices.shape[1]):
            weight = weights[i, k] * norm
            vertex = vertices[i, k] * width
            for label in range(0, width, WIDTH):
                value = add_scaled(load(sums, vertex + label), weight, load(q, label))
                store(sums, vertex + label, value)


@compiled
def _conclude(logits: Any, vertices: Any, weights: Any, messages: Any, width: Any) -> None:
    """Replace the logits by the marginals."""
    q = np.empty(width, np.float32)
    for i in range(vertices.shape[0]):
        norm = _marginals(logits, i, vertices, weights, messages, width, q)
        for label in range(0, width, WIDTH):
            store(logits, i * width + label, scaled(norm, load(q, label)))


@compiled
def _blur(neighbours: Any, values: Any, spare: Any, width: Any) -> None:
    """Blur `values` (M+1, S) along every direction in turn; its last row is and stays zero."""
    source, target = values, spare
    for direction in range(neighbours.shape[0]):
        for vertex in range(neighbours.shape[1]):
            before = neighbours[direction, vertex, 0] * width
            after = neighbours[direction, vertex, 1] * width
            for label in range(0, width, WIDTH):
                sides = add(load(source, before + label), load(source, after + label))
                value = add_scaled(load(source, vertex * width + label), _HALF, sides)
                store(target, vertex * width + label, value)
        source, target = target, source
    if neighbours.shape[0] % 2:
        values[:] = spare
