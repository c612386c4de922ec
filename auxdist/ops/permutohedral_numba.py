"""The permutohedral lattice on one CPU core: build once, filter often. Compiled by numba.

Everything runs on the calling thread without the GIL; results depend on nothing but the input.

Shape legend: N points, d features, M lattice vertices, colour r a vertex' remainder modulo d+1.
Vertices are numbered colour by colour and, within a colour, in the order of their keys: a step
of the blur adds a constant to every key of a colour, so it keeps the order, all neighbours are
found by merging sorted lists, and the blur reads memory almost in sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from auxdist.ops.permutohedral import filter_gain, geometry

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]

_CHUNK = 256  # points embedded at a time: their intermediate values stay in the first cache
_TABLE_BITS = 15  # size of a colour's first hash table
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)


def compiled(function: Callable[..., Any]) -> Any:
    """The function as machine code, made at its first call and kept on disk where possible.

    Without fast maths: numba optimises a function anew wherever it is inlined, and relaxed
    arithmetic then rounds differently in a process that compiles and in one that reads the cache.
    """
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # neither the package nor the user's cache folder can be written to
        return njit(nogil=True, error_model="numpy")(function)


@dataclass(frozen=True)
class Lattice:
    """A Gaussian kernel over N points as the product W B W^T, W sparse, B the blur.

    vertices    (N, d+1) int32, the vertices of each point's simplex
    weights     (N, d+1) float32, its barycentric weights there
    neighbours  (d+1, M, 2) int32, both neighbours of each vertex along each direction;
                M where there is none
    """

    vertices: Integers
    weights: Floats
    neighbours: Integers

    @property
    def num_vertices(self) -> int:
        """M."""
        return self.neighbours.shape[1]

    def filter(self, values: Floats) -> Floats:
        """W B W^T values, (N,) -> (N,)."""
        result = np.empty_like(values)
        _filter(self.vertices, self.weights, self.neighbours, values, result)
        return result

    def normalised(self, strength: float) -> Lattice:
        """The lattice whose filter is strength * D^-1/2 K D^-1/2, D the row sums of the kernel K.

        `strength` must not be negative: half of it goes into either W.
        """
        gain = np.float32(filter_gain(self.weights.shape[1] - 1))
        sums = self.filter(np.ones(len(self.weights), np.float32)) / gain
        factor = np.sqrt(np.float32(strength) / gain / (sums + np.float32(1e-20)))
        return replace(self, weights=self.weights * factor[:, None])


def build(features: Floats) -> Lattice:
    """The lattice of a Gaussian of standard deviation 1 over `features` (d, N).

    Memory: 16 (d+1) + 8 bytes a point while building, 8 (d+1) after it, 8 (d+1) a vertex.

    Raises:
        DataError: the features span more cells than can be numbered.
    """
    d, num_points = features.shape
    layout = geometry(
        [float(row.min()) for row in features], [float(row.max()) for row in features]
    )
    scale = tuple(np.float32(factor) for factor in layout.scale)
    keys = np.empty((d + 1, num_points), np.int64)
    weights = np.empty((num_points, d + 1), np.float32)
    _embed(features, scale, np.array(layout.low), np.array(layout.stride), keys, weights)
    vertices, unique, starts = _number(keys)
    steps = np.array([layout.steps(colour) for colour in range(d + 1)])
    neighbours = np.full((d + 1, len(unique), 2), len(unique), np.int32)
    _join(unique, starts, steps, neighbours)
    return Lattice(vertices, weights, neighbours)


def _number(
    keys: NDArray[np.int64],
) -> tuple[Integers, NDArray[np.int64], NDArray[np.int64]]:
    """Keys (d+1, N) -> vertices (N, d+1), keys of all vertices (M,), first of each colour."""
    num_colours, num_points = keys.shape
    vertices = np.empty((num_points, num_colours), np.int32)
    found = np.empty(num_points, np.int64)
    bits = _TABLE_BITS
    unique, starts, ranks = [], [0], []
    for colour in range(num_colours):
        while True:
            table = np.full(1 << bits, -1, np.int64)
            numbers = np.empty(1 << bits, np.int32)
            count = _hash(keys[colour], table, numbers, 64 - bits, found, vertices[:, colour])
            if count >= 0:
                break
            bits += 1
        order = np.argsort(found[:count])
        rank = np.empty(count, np.int32)
        rank[order] = np.arange(starts[-1], starts[-1] + count, dtype=np.int32)
        unique.append(found[:count][order])
        ranks.append(rank)
        starts.append(starts[-1] + count)
    first = np.array(starts)
    _renumber(vertices, np.concatenate(ranks), first)
    return vertices, np.concatenate(unique), first


@compiled
def _embed(features: Any, scale: Any, low: Any, stride: Any, keys: Any, weights: Any) -> None:
    """Vertices' keys (d+1, N) and barycentric weights (N, d+1) of features (d, N)."""
    d = len(scale)
    coordinates = np.empty((d + 1, _CHUNK), np.float32)
    quotients = np.empty((d + 1, _CHUNK), np.int32)
    ranks = np.empty((d + 1, _CHUNK), np.int32)
    sums = np.empty(_CHUNK, np.int32)
    colour_weights = np.empty((d + 1, _CHUNK), np.float32)
    for start in range(0, features.shape[1], _CHUNK):
        stop = min(start + _CHUNK, features.shape[1])
        _elevate(features[:, start:stop], scale, coordinates)
        _locate(coordinates, d, stop - start, quotients, ranks, sums)
        _weigh(coordinates, ranks, d, stop - start, colour_weights)
        _pack(quotients, ranks, d, low, stride, keys[:, start:stop])
        for k in range(stop - start):
            for colour in range(d + 1):
                weights[start + k, colour] = colour_weights[colour, k]


@compiled
def _elevate(features: Any, scale: Any, coordinates: Any) -> None:
    """Into the hyperplane: x_i = sum of scaled features i.. minus i times scaled feature i-1."""
    d = len(scale)
    for k in range(features.shape[1]):
        coordinates[0, k] = 0
    for i in range(d, 0, -1):
        for k in range(features.shape[1]):
            value = features[i - 1, k] * scale[i - 1]
            coordinates[i, k] = coordinates[0, k] - np.float32(i) * value
            coordinates[0, k] += value


@compiled
def _locate(coordinates: Any, d: Any, num: Any, quotients: Any, ranks: Any, sums: Any) -> None:
    """The simplex: quotients of its vertex of colour 0 and the order of the offsets from it.

    Coordinates become offsets from that vertex, in units of d+1. Until they are ordered they are
    computed in the paper's own order: where offsets tie, rounding decides which vertices exist.
    """
    size, inverse = np.float32(d + 1), _ONE / np.float32(d + 1)
    for k in range(num):
        sums[k] = 0
    for i in range(d + 1):
        for k in range(num):
            nearest = np.floor(coordinates[i, k] * inverse + _HALF)
            quotients[i, k] = np.int32(nearest)
            sums[k] += np.int32(nearest)
            coordinates[i, k] -= nearest * size
            ranks[i, k] = 0
    for i in range(d):
        for j in range(i + 1, d + 1):
            for k in range(num):
                smaller = np.int32(coordinates[i, k] < coordinates[j, k])
                ranks[i, k] += smaller
                ranks[j, k] += np.int32(1) - smaller
    for i in range(d + 1):
        for k in range(num):
            rank = ranks[i, k] + sums[k]  # where the quotients do not sum to 0, move by one
            wrap = np.int32(rank < 0) - np.int32(rank > d)
            quotients[i, k] += wrap
            ranks[i, k] = rank + wrap * np.int32(d + 1)
            coordinates[i, k] = (coordinates[i, k] - np.float32(wrap) * size) * inverse


@compiled
def _weigh(offsets: Any, ranks: Any, d: Any, num: Any, weights: Any) -> None:
    """Barycentric weights: of colour r the offset of rank d-r less that of rank d+1-r."""
    for colour in range(d + 1):
        for k in range(num):
            weights[colour, k] = _ONE if colour == 0 else _ZERO
    for i in range(d + 1):
        for colour in range(d + 1):
            for k in range(num):
                rank = ranks[i, k] + colour - d
                offset = offsets[i, k]
                weights[colour, k] += offset if rank == 0 else _ZERO
                weights[colour, k] -= offset if rank == 1 else _ZERO
        for k in range(num):
            weights[0, k] -= offsets[i, k] if ranks[i, k] == 0 else _ZERO


@compiled
def _pack(quotients: Any, ranks: Any, d: Any, low: Any, stride: Any, keys: Any) -> None:
    """Keys (d+1, n): those of colour 0, less a step for each rank beyond d - colour."""
    num = keys.shape[1]
    for k in range(num):
        keys[0, k] = 0
    for i in range(d):
        lowest, step = np.int64(low[i]), np.int64(stride[i])
        for k in range(num):
            keys[0, k] += (quotients[i, k] - lowest) * step
    for colour in range(1, d + 1):
        for k in range(num):
            keys[colour, k] = keys[0, k]
        for i in range(d):
            step = np.int64(stride[i])
            for k in range(num):
                keys[colour, k] -= step if ranks[i, k] > d - colour else 0


@compiled
def _hash(keys: Any, table: Any, numbers: Any, shift: Any, found: Any, vertices: Any) -> Any:
    """Number the distinct keys by first appearance; their count, or -1: the table is too small.

    found[:count] are the distinct keys, vertices (N,) each point's number.
    """
    mask = np.uint64(len(table) - 1)
    count = np.int32(0)
    for i in range(len(keys)):
        key = keys[i]
        slot = (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(shift)
        while table[slot] != key:
            if table[slot] < 0:
                if 2 * count >= len(table):
                    return np.int32(-1)
                table[slot] = key
                numbers[slot] = count
                found[count] = key
                count += np.int32(1)
                break
            slot = (slot + np.uint64(1)) & mask
        vertices[i] = numbers[slot]
    return count


@compiled
def _renumber(vertices: Any, ranks: Any, starts: Any) -> None:
    """From numbers within a colour by appearance to numbers in the order of the keys."""
    for i in range(vertices.shape[0]):
        for colour in range(vertices.shape[1]):
            vertices[i, colour] = ranks[starts[colour] + vertices[i, colour]]


@compiled
def _join(keys: Any, starts: Any, steps: Any, neighbours: Any) -> None:
    """Pairs of neighbours along each direction, by merging the sorted keys of two colours."""
    num_colours = len(starts) - 1
    for direction in range(num_colours):
        for colour in range(num_colours):
            step = steps[colour, direction]
            other = (colour + num_colours - 1) % num_colours
            candidate, stop = starts[other], starts[other + 1]
            for vertex in range(starts[colour], starts[colour + 1]):
                wanted = keys[vertex] + step
                while candidate < stop and keys[candidate] < wanted:
                    candidate += 1
                if candidate < stop and keys[candidate] == wanted:
                    neighbours[direction, vertex, 0] = candidate
                    neighbours[direction, candidate, 1] = vertex


@compiled
def _filter(vertices: Any, weights: Any, neighbours: Any, values: Any, result: Any) -> None:
    """Splat, blur along each direction, slice; the last element of `lattice` is always zero."""
    num_points, num_colours = vertices.shape
    num_vertices = neighbours.shape[1]
    lattice = np.zeros(num_vertices + 1, np.float32)
    blurred = np.zeros(num_vertices + 1, np.float32)
    for i in range(num_points):
        for colour in range(num_colours):
            lattice[vertices[i, colour]] += weights[i, colour] * values[i]
    for direction in range(num_colours):
        for vertex in range(num_vertices):
            before = lattice[neighbours[direction, vertex, 0]]
            after = lattice[neighbours[direction, vertex, 1]]
            blurred[vertex] = lattice[vertex] + _HALF * (before + after)
        lattice, blurred = blurred, lattice
    for i in range(num_points):
        value = _ZERO
        for colour in range(num_colours):
            value += weights[i, colour] * lattice[vertices[i, colour]]
        result[i] = value
