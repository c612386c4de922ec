"""The permutohedral lattice in plain torch, for a batch of images on any device.

Rounds like the numba form, so both build the same lattice. Deterministic on GPU too: sums over
the points of a vertex run in a fixed order (embedding_bag), never by atomic additions.

Shape legend: B images, P = B * N points of all images, d features, K channels, M vertices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from auxdist.errors import DataError
from auxdist.ops.permutohedral import Geometry, filter_gain, geometry


@dataclass(frozen=True)
class Lattice:
    """A Gaussian kernel over P points as the product W B W^T, W sparse, B the blur.

    vertices    (P, d+1) int64, the vertices of each point's simplex
    weights     (P, d+1) float32, its barycentric weights there
    neighbours  (d+1, 2, M) int64, both neighbours of each vertex along each direction; M: none
    order       (P * (d+1),) int64, entries of `vertices` (flat) sorted by vertex
    starts      (M,) int64, the first entry of each vertex in `order`
    """

    vertices: Tensor
    weights: Tensor
    neighbours: Tensor
    order: Tensor
    starts: Tensor

    def filter(self, values: Tensor) -> Tensor:
        """W B W^T values, (P, K) -> (P, K)."""
        points = self.order // self.vertices.shape[1]
        weights = self.weights.flatten()[self.order]
        splat = embedding_bag(points, values, self.starts, per_sample_weights=weights, mode="sum")
        lattice = torch.cat([splat, splat.new_zeros(1, splat.shape[1])])  # (M + 1, K)
        for before, after in self.neighbours:
            lattice[:-1] += 0.5 * (lattice[before] + lattice[after])
        return embedding_bag(self.vertices, lattice, per_sample_weights=self.weights, mode="sum")

    def normalised(self, strength: float) -> Lattice:
        """The lattice whose filter is strength * D^-1/2 K D^-1/2, D the row sums of the kernel K.

        `strength` must not be negative: half of it goes into either W.
        """
        gain = filter_gain(self.weights.shape[1] - 1)
        sums = self.filter(torch.ones_like(self.weights[:, :1])) / gain
        return replace(self, weights=self.weights * (strength / gain / (sums + 1e-20)).sqrt())


def build(features: Tensor, num_images: int) -> Lattice:
    """The lattice of a Gaussian of standard deviation 1 over `features` (d, P), image by image.

    The points of image b are b * N .. (b + 1) * N - 1. Memory: about 60 (d+1) bytes a point.

    Raises:
        DataError: the features span more cells than can be numbered.
    """
    d, num_points = features.shape
    layout = geometry(features.amin(1).tolist(), features.amax(1).tolist())
    if num_images * (d + 1) * layout.num_keys >= 2**63:
        raise DataError(
            f"permutohedral lattice: a batch of {num_images} images spans more cells than can be "
            "numbered in 64 bits; use a smaller batch or wider kernels (a larger sxy or srgb)."
        )
    quotients, ranks, offsets = _locate(_elevate(features, layout), d)
    by_rank = torch.empty_like(offsets).scatter_(0, ranks, offsets).flip(0)
    weights = by_rank - by_rank.roll(1, 0)  # (d + 1, P), a row for each colour
    weights[0] += 1
    images = torch.arange(num_images, device=features.device)
    keys = _keys(quotients, ranks, images.repeat_interleave(num_points // num_images), layout)
    unique, vertices, counts = torch.unique(keys, return_inverse=True, return_counts=True)
    return Lattice(
        vertices,
        weights.T.contiguous(),
        _neighbours(unique, layout),
        vertices.flatten().argsort(stable=True),
        counts.cumsum(0) - counts,
    )


def _elevate(features: Tensor, layout: Geometry) -> Tensor:
    """(d, P) -> (d+1, P): x_i = sum of scaled features i.. minus i times scaled feature i-1."""
    total = torch.zeros_like(features[0])
    coordinates = []
    for i in range(len(features), 0, -1):
        value = features[i - 1] * layout.scale[i - 1]
        coordinates.append(total - i * value)
        total = total + value
    return torch.stack([total, *reversed(coordinates)])


def _locate(coordinates: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex: quotients of its vertex of colour 0, order of the offsets from it, offsets.

    All (d+1, P); offsets in units of d+1.
    """
    nearest = (coordinates * (1 / (d + 1)) + 0.5).floor()
    offsets = coordinates - nearest * (d + 1)
    quotients = nearest.long()
    ranks = quotients.sum(0).repeat(d + 1, 1)  # where the quotients do not sum to 0, move by one
    for i in range(d):
        for j in range(i + 1, d + 1):
            smaller = (offsets[i] < offsets[j]).long()
            ranks[i] += smaller
            ranks[j] += 1 - smaller
    wrap = (ranks < 0).long() - (ranks > d).long()
    offsets = (offsets - wrap * float(d + 1)) * (1 / (d + 1))
    return quotients + wrap, ranks + wrap * (d + 1), offsets


def _keys(quotients: Tensor, ranks: Tensor, images: Tensor, layout: Geometry) -> Tensor:
    """The key of each point's vertex of each colour, (P, d+1); image, then colour lead."""
    d = len(layout.scale)
    stride = quotients.new_tensor(layout.stride)[:, None]
    low = quotients.new_tensor(layout.low)[:, None]
    base = ((quotients[:d] - low) * stride).sum(0)
    columns = []
    for colour in range(d + 1):
        beyond = ((ranks[:d] > d - colour) * stride).sum(0)
        columns.append((images * (d + 1) + colour) * layout.num_keys + base - beyond)
    return torch.stack(columns, dim=1)


def _neighbours(unique: Tensor, layout: Geometry) -> Tensor:
    """Both neighbours of each vertex along each direction, (d+1, 2, M), of the sorted keys (M,)."""
    num_vertices, d = len(unique), len(layout.scale)
    numbers = torch.arange(num_vertices, device=unique.device)
    first_colour = (unique // layout.num_keys) % (d + 1) == 0
    pairs = []
    for direction in range(d + 1):
        wrapped = layout.steps(0)[direction] + d * layout.num_keys
        plain = layout.steps(1)[direction] - layout.num_keys
        wanted = unique + torch.where(first_colour, wrapped, plain)
        place = torch.searchsorted(unique, wanted).clamp(max=num_vertices - 1)
        before = torch.where(unique[place] == wanted, place, num_vertices)
        after = torch.full((num_vertices + 1,), num_vertices, device=unique.device)
        after[before] = numbers  # the element behind the last one takes those without a neighbour
        pairs.append(torch.stack([before, after[:-1]]))
    return torch.stack(pairs)
