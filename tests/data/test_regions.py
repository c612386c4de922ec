"""Polygons and run-length codes become the right pixels."""

import numpy as np
import pytest
from coco_instances import compress, runs, segmentation

from auxdist.data.regions import decode_counts, decode_runs, region_mask
from auxdist.errors import DataError


def _blobs(seed: int, height: int = 37, width: int = 53) -> np.ndarray:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centre = random.uniform(5, 30, 2)
    return (y - centre[0]) ** 2 / 60 + (x - centre[1]) ** 2 / 150 < random.uniform(0.8, 1.6)


def test_polygon_covers_the_pixels_whose_centre_lies_inside() -> None:
    mask = region_mask([[1, 1, 4, 1, 4, 3, 1, 3]], 5, 6)
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    assert np.array_equal(mask, expected)


def test_polygon_reproduces_a_region_drawn_from_pixels() -> None:
    for seed in range(5):
        region = _blobs(seed)
        assert np.array_equal(region_mask(segmentation(region), *region.shape), region)


def test_polygons_of_one_annotation_are_united_even_where_they_overlap() -> None:
    square = [0, 0, 3, 0, 3, 3, 0, 3]
    assert region_mask([square, square], 4, 4).sum() == 9


def test_corners_far_outside_do_not_bend_an_edge_inside() -> None:
    assert region_mask([[-100, 0, 10, 0, 10, 110]], 10, 10).all()


def test_polygon_outside_the_image_covers_nothing() -> None:
    assert not region_mask([[50, 50, 60, 50, 60, 60]], 10, 10).any()


def test_both_run_length_codes_reproduce_a_region() -> None:
    for seed in range(5):
        region = _blobs(seed)
        size = list(region.shape)
        assert np.array_equal(decode_runs({"counts": runs(region), "size": size}, *size), region)
        text = compress(runs(region))
        assert np.array_equal(decode_runs({"counts": text, "size": size}, *size), region)


def test_compressed_counts_survive_large_and_shrinking_numbers() -> None:
    counts = [0, 100000, 3, 99999, 1, 5, 70000, 2]
    assert decode_counts(compress(counts)) == counts


def test_compressed_counts_are_those_that_coco_writes() -> None:
    assert decode_counts("05b00OO1O") == [0, 5, 18, 5, 17, 4, 18, 3]


@pytest.mark.parametrize(
    ("segmentation_", "text"),
    [
        ([], "list of polygons"),
        ([[1, 2, 3]], "numbers x0, y0"),
        ([[1, 2, 3, 4]], "three or more corners"),
        ([["a", 2]], "numbers x0, y0"),
        ({"counts": [4], "size": [3, 3]}, "of size"),
        ({"counts": [4], "size": [2, 3]}, "fills 4 of 6"),
        ({"counts": [-1, 7], "size": [2, 3]}, "counts of 0 or more"),
        ({"counts": "\n", "size": [2, 3]}, "holds the character"),
        ({"counts": "P", "size": [2, 3]}, "ends within a number"),
    ],
)
def test_malformed_segmentation_is_refused(segmentation_: object, text: str) -> None:
    with pytest.raises(DataError, match=text):
        region_mask(segmentation_, 2, 3)
