"""Both forms of the permutohedral lattice: Gaussians, normalised symmetrically, and the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from auxdist.errors import DataError
from auxdist.ops import permutohedral_numba, permutohedral_torch
from auxdist.ops.permutohedral import geometry


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def normalised_gaussian(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """D^-1/2 K D^-1/2 values with K_ij = exp(-|f_i - f_j|^2 / 2), by all N^2 pairs."""
    distances = ((features[:, :, None] - features[:, None, :]) ** 2).sum(0)
    kernel = np.exp(-0.5 * distances)
    factor = 1 / np.sqrt(kernel.sum(1))
    return factor * (kernel @ (factor * values))


@pytest.fixture(params=[2, 5])
def points(request: pytest.FixtureRequest) -> np.ndarray:
    """Features (d, 400) dense enough that each point has neighbours."""
    return noise((request.param, 400), request.param) * np.float32(2 / request.param)


def test_filter_is_close_to_the_gaussian_over_all_pairs(points: np.ndarray) -> None:
    values = 1 + noise((400,), 7)
    exact = normalised_gaussian(points, values)
    filtered = permutohedral_numba.build(points).normalised(1.0).filter(values)
    assert np.corrcoef(exact, filtered)[0, 1] > 0.98
    assert np.abs(filtered - exact).mean() < 0.08 * np.abs(exact).mean()


def test_normalised_filter_is_a_symmetric_matrix_times_its_strength(points: np.ndarray) -> None:
    lattice = permutohedral_numba.build(points)
    units = np.eye(400, dtype=np.float32)
    once = np.stack([lattice.normalised(1.0).filter(unit) for unit in units])
    thrice = np.stack([lattice.normalised(3.0).filter(unit) for unit in units])
    # nearly: the blur takes the directions in one order, and at the border of the lattice that
    # order matters
    assert np.linalg.norm(once - once.T) < 0.06 * np.linalg.norm(once)
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-4, atol=1e-6)


def test_normalised_filter_keeps_the_roots_of_the_row_sums(points: np.ndarray) -> None:
    """D^-1/2 K D^-1/2 D^1/2 1 = D^-1/2 K 1 = D^1/2 1, which only symmetric normalisation does."""
    lattice = permutohedral_numba.build(points)
    gain = 1 + 2.0 ** -len(points)
    roots = np.sqrt(lattice.filter(np.ones(400, np.float32)) / np.float32(gain))
    np.testing.assert_allclose(lattice.normalised(1.0).filter(roots), roots, rtol=1e-4)


def test_barycentric_weights_are_a_partition_of_one(points: np.ndarray) -> None:
    weights = permutohedral_numba.build(points).weights
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert weights.min() > -1e-5


def test_neighbours_are_mutual(points: np.ndarray) -> None:
    lattice = permutohedral_numba.build(points)
    assert lattice.neighbours.max() == lattice.num_vertices
    for before, after in lattice.neighbours.transpose(0, 2, 1):
        vertices = np.flatnonzero(before < lattice.num_vertices)
        assert len(vertices) > 0
        np.testing.assert_array_equal(after[before[vertices]], vertices)


def test_torch_builds_the_lattice_of_numba(points: np.ndarray) -> None:
    fast = permutohedral_numba.build(points)
    plain = permutohedral_torch.build(torch.from_numpy(points), 1)
    np.testing.assert_array_equal(plain.vertices.numpy(), fast.vertices)
    np.testing.assert_allclose(plain.weights.numpy(), fast.weights, atol=1e-6)
    np.testing.assert_array_equal(plain.neighbours.numpy(), fast.neighbours.transpose(0, 2, 1))


def test_images_of_a_batch_do_not_see_each_other(points: np.ndarray) -> None:
    features, values = torch.from_numpy(points), torch.from_numpy(noise((400, 3)))
    batch = permutohedral_torch.build(features, 2).normalised(1.0).filter(values)
    for part in (slice(0, 200), slice(200, 400)):
        alone = permutohedral_torch.build(features[:, part], 1).normalised(1.0)
        torch.testing.assert_close(batch[part], alone.filter(values[part]), rtol=0, atol=1e-6)


def test_crowded_hash_tables_grow() -> None:
    """Far more vertices of a colour than the first table holds."""
    features = noise((2, 60_000)) * np.float32(300)
    lattice = permutohedral_numba.build(features)
    assert lattice.num_vertices > 3 * 2**15
    plain = permutohedral_torch.build(torch.from_numpy(features), 1)
    np.testing.assert_array_equal(plain.vertices.numpy(), lattice.vertices)


def test_too_narrow_kernels_are_refused() -> None:
    with pytest.raises(DataError, match=r"use wider kernels \(a larger sxy or srgb\)"):
        geometry([0.0] * 5, [1e6] * 5)


def test_too_large_batches_are_refused() -> None:
    features = torch.from_numpy(noise((5, 2**12))) * 400
    with pytest.raises(DataError, match="use a smaller batch or wider kernels"):
        permutohedral_torch.build(features, 2**12)


def test_a_read_only_installation_compiles_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(permutohedral_numba, "njit", njit)
    assert permutohedral_numba.compiled(noise) is noise
