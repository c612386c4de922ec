"""Windows of large images: where they lie, and how they are put together."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from auxdist.evaluate.windows import Blend, intervals


@pytest.mark.parametrize(("length", "window"), [(64, 64), (50, 64), (1000, 0)])
def test_what_fits_is_one_window(length: int, window: int) -> None:
    assert intervals(length, window, 8) == [(0, length)]


@pytest.mark.parametrize("length", range(65, 260, 13))
def test_windows_cover_everything_fit_the_stride_and_overlap(length: int) -> None:
    found = intervals(length, 64, 8)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(start % 8 == 0 and 0 < stop - start <= 64 for start, stop in found)
    overlaps = [before[1] - after[0] for before, after in pairwise(found)]
    assert min(overlaps) >= 32
    assert len(set(found)) == len(found)


def test_blend_of_parts_of_one_map_is_the_map() -> None:
    values = torch.from_numpy(np.random.Generator(np.random.PCG64(0)).random((3, 20, 11)))
    size = (157, 85)  # ceil(157 / 8), ceil(85 / 8) features
    blend = Blend(size, 8)
    for top, bottom in intervals(size[0], 64, 8):
        for left, right in intervals(size[1], 64, 8):
            part = values[:, top // 8 : -(-bottom // 8), left // 8 : -(-right // 8)]
            blend.add(top, left, part)
    torch.testing.assert_close(blend.mean(), values, rtol=1e-12, atol=0)


def test_a_window_counts_less_towards_its_border() -> None:
    blend = Blend((8, 48), 8)
    blend.add(0, 0, torch.full((1, 1, 4), 1.0))  # weights 1 2 2 1
    blend.add(0, 16, torch.full((1, 1, 4), 2.0))
    assert blend.mean()[0, 0].tolist() == pytest.approx([1, 1, 4 / 3, 5 / 3, 2, 2])
