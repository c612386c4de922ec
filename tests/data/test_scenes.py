"""The demo's scenes."""

import numpy as np
import pytest

from auxdist.data.scenes import BODIES, KINDS, draw_scene
from auxdist.errors import DataError


def test_scene_is_a_pure_function_of_its_arguments() -> None:
    first, again = (draw_scene(3, "train", 5, 96) for _ in range(2))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.labels, again.labels)


def test_seed_split_and_number_each_change_the_scene() -> None:
    scenes = [draw_scene(*arguments, 96) for arguments in
              [(0, "train", 0), (1, "train", 0), (0, "val", 0), (0, "train", 1)]]  # fmt: skip
    assert len({scene.image.tobytes() for scene in scenes}) == 4


def test_there_are_eight_classes_with_heads_of_their_own_and_shared_bodies() -> None:
    assert len(KINDS) >= 8
    assert len({(kind.plate, kind.symbol, kind.ink) for kind in KINDS}) == len(KINDS)
    assert len(BODIES) == len(KINDS) // 2


def test_truth_is_exact_and_in_range_and_every_class_occurs() -> None:
    seen = set()
    for number in range(60):
        scene = draw_scene(0, "train", number, 96)
        assert scene.labels.shape == scene.image.shape[:2]
        assert scene.labels.max() <= len(KINDS)
        assert scene.classes == tuple(sorted({int(v) - 1 for v in np.unique(scene.labels)} - {-1}))
        assert 1 <= len(scene.classes) <= 3
        seen |= set(scene.classes)
    assert seen == set(range(len(KINDS)))


def test_sizes_vary_around_the_one_asked_for() -> None:
    sizes = {draw_scene(0, "train", number, 128).labels.shape for number in range(20)}
    assert len(sizes) > 10
    assert all(112 <= side <= 144 for size in sizes for side in size)


def test_scene_too_small_for_emblems_is_refused() -> None:
    with pytest.raises(DataError, match="at least 64"):
        draw_scene(0, "train", 0, 32)
