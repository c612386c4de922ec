from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from auxdist.ops.affinity import CrossTaskAffinity, OwnAffinity, TaskAffinity, rows_at_once
from auxdist.ops.affinity_rows import Keys, Mixer, pair_rows, share_rows

H, W, CHANNELS = 5, 8, 6


def leaves(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries and keys of both tasks, the mixer's tensors, the maps to multiply."""
    torch.manual_seed(seed)
    shapes = [(2, H * W, CHANNELS)] * 4 + [(2, 2, 3, 3), (2, 2, 1, 1), (2,), (2, 3, H, W)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def cross(tensors: list[Tensor], block: int, renormalise: bool = False) -> CrossTaskAffinity:
    seg = TaskAffinity(Keys(tensors[0], tensors[1]), block)
    sal = TaskAffinity(Keys(tensors[2], tensors[3]), block)
    return CrossTaskAffinity(seg, sal, Mixer(*tensors[4:7]), renormalise)


def with_gradients(
    function: Callable[[list[Tensor]], Tensor], tensors: list[Tensor]
) -> list[Tensor]:
    """The value, and the gradients of a fixed random projection of it."""
    value = function(tensors)
    torch.manual_seed(1)
    used = torch.autograd.grad((value * torch.randn_like(value)).sum(), tensors, allow_unused=True)
    return [value.detach(), *(g for g in used if g is not None)]


def test_kernels_of_gpus_that_hold_no_square_map_get_a_width_that_they_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In fp32 a multiple of 4; for another torch falls back, in silence, to one that holds it."""
    widths = []
    attention = F.scaled_dot_product_attention

    def note(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Tensor:
        widths.append({part.shape[-1] for part in (query, key, value)})
        return attention(query, key, value, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", note)
    query, key = leaves()[:2]
    for columns in (3, CHANNELS, 9):
        values = torch.randn(2, H * W, columns, dtype=query.dtype)
        blocked, whole = (TaskAffinity(Keys(query, key), block) for block in (8, 0))
        torch.testing.assert_close(blocked.apply(values), whole.apply(values))
    assert widths == [{8}, {8}, {12}]


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("block", [1, 7, 16, H * W - 1])
def test_blocked_product_and_its_gradients_equal_the_dense_ones(
    block: int, renormalise: bool
) -> None:
    def product(block: int) -> list[Tensor]:
        return with_gradients(lambda t: cross(t, block, renormalise).apply(t[7]), leaves())

    dense, blocked = product(H * W), product(block)
    assert len(dense) == 9
    for expected, found in zip(dense, blocked, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_blocked_product_without_gradients_equals_the_dense_one() -> None:
    tensors = leaves()
    with torch.no_grad():
        expected = cross(tensors, H * W).apply(tensors[7])
        torch.testing.assert_close(
            cross(tensors, 9).apply(tensors[7]), expected, rtol=1e-12, atol=1e-12
        )


def test_features_path_equals_the_dense_one_with_its_gradients() -> None:
    def product(block: int) -> list[Tensor]:
        return with_gradients(lambda t: TaskAffinity(Keys(t[0], t[1]), block).apply(t[3]), leaves())

    for expected, found in zip(product(H * W), product(4), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_item_2_rows_of_the_affinities_and_shares_of_the_tasks_sum_to_one() -> None:
    tensors = leaves()
    affinity = cross(tensors, 0, renormalise=True)
    ones = torch.ones(2, H * W, dtype=torch.float64)
    for matrix in (affinity.seg.matrix, affinity.sal.matrix, affinity.matrix):
        torch.testing.assert_close(matrix.sum(-1), ones)
    pair = pair_rows(affinity.seg.keys, affinity.sal.keys, 0, H * W)
    share = share_rows(pair, affinity.mixer)
    both = torch.stack([affinity.seg.matrix, affinity.sal.matrix], 1)
    hidden = F.conv2d(both, affinity.mixer.first, padding=1).relu()
    shares = F.conv2d(hidden, affinity.mixer.second, affinity.mixer.bias).softmax(1)
    torch.testing.assert_close(shares.sum(1), torch.ones_like(share))
    torch.testing.assert_close(share, shares[:, 0])
    torch.testing.assert_close(cross(tensors, 0).matrix, (shares * both).sum(1))


@pytest.mark.parametrize("block", [0, 7])
def test_mixing_is_mean_and_deviation_of_the_segmentation_share(block: int) -> None:
    affinity = cross(leaves(), block)
    seg, sal = affinity.seg.matrix, affinity.sal.matrix
    share = (affinity.matrix - sal) / (seg - sal)
    found = affinity.mixing()
    assert found.mean == pytest.approx(float(share.detach().mean()), abs=1e-9)
    assert found.std == pytest.approx(float(share.detach().std(correction=0)), abs=1e-9)


def test_mixing_resolves_a_tiny_deviation_in_fp32() -> None:
    tensors = [t.detach() for t in leaves(dtype=torch.float32)]
    tensors[4] *= 1e-5
    exact = cross([t.double() for t in tensors], 0).mixing()
    assert exact.std < 1e-5
    # A share near 0.5 is stored in steps of 6e-8.
    assert cross(tensors, 0).mixing().std == pytest.approx(exact.std, abs=1e-7)


def test_maps_stay_in_fp32_under_autocast() -> None:
    tensors = [t.detach().float() for t in leaves()]
    expected = [cross(tensors, block).apply(tensors[7]) for block in (0, 7)]
    with torch.autocast("cpu", torch.bfloat16):
        found = [cross(tensors, block).apply(tensors[7].bfloat16().float()) for block in (0, 7)]
        exact = [cross(tensors, block).apply(tensors[7]) for block in (0, 7)]
        assert TaskAffinity(Keys(*tensors[:2])).matrix.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(expected, exact, strict=True))
    assert all(value.dtype == torch.float32 for value in found)


def test_block_is_chosen_by_the_number_of_positions() -> None:
    assert rows_at_once(1024, 0) == 0
    assert rows_at_once(4800, 0) == 128
    assert rows_at_once(4800, 64) == 64
    assert rows_at_once(196, 256) == 0


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_blocked_form_never_holds_a_square_map(gradients: bool, is_transposed: bool) -> None:
    """Neither where values come from a (B, D, h, w) map, each row strewn over its channels."""
    positions, block = 1200, 8
    keys = [torch.randn(1, positions, 16, requires_grad=gradients) for _ in range(4)]
    mixer = [torch.randn(shape) for shape in ((2, 2, 3, 3), (2, 2, 1, 1), (2,))]
    maps = torch.randn(1, 3, 30, 40)
    values = torch.randn(1, 16, positions).transpose(1, 2) if is_transposed else keys[0]
    with Largest() as largest:
        affinity = cross([*keys, *mixer], block)
        value = affinity.apply(maps).sum() + affinity.seg.apply(values).sum()
        value = value + OwnAffinity(affinity.seg).apply(maps).sum()
        if gradients:
            value.backward()
    assert largest.elements <= 2 * (block + 2) * positions
    assert astuple(affinity.mixing())[1] > 0
