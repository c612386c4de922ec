"""Augmentation as method.md 2.6 says, with every switch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from auxdist.config import CropConfig
from auxdist.data.augment import Draw, augment, draw_batch_scale, draw_sample, resized

PLAIN = Draw(scale=1.0, flipped=False, top=0.0, left=0.0)
CROP = CropConfig(size=16)


def numbered(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image whose red and green say where a pixel is, labels like green, a saliency map."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.uint8)
    image = np.stack([rows, columns, np.full_like(rows, 7)], axis=-1)
    return image, columns, np.where((columns + rows) % 5 < 2, 255, 0).astype(np.uint8)


def test_a_crop_of_an_unscaled_image_is_a_part_of_it() -> None:
    image, labels, saliency = numbered(40, 50)
    draw = replace(PLAIN, top=0.5, left=0.999)
    crop = augment(image, (labels, saliency), draw, CROP)
    assert crop.extent == (16, 16)
    np.testing.assert_array_equal(crop.image, image[12:28, 34:50].transpose(2, 0, 1))
    np.testing.assert_array_equal(crop.segmentation, labels[12:28, 34:50])
    np.testing.assert_array_equal(crop.saliency, saliency[12:28, 34:50] > 127)


def test_crops_reach_both_ends() -> None:
    image, labels, saliency = numbered(17, 16)
    tops = {
        int(augment(image, (labels, saliency), replace(PLAIN, top=t), CROP).image[0, 0, 0])
        for t in (0.0, 0.49, 0.51, 1 - 2**-53)
    }
    assert tops == {0, 1}


@pytest.mark.parametrize("scale", [1.0, 0.8, 1.3])
def test_a_flip_moves_image_and_labels_together(scale: float) -> None:
    image, labels, saliency = numbered(40, 12)
    draw = replace(PLAIN, scale=scale, top=0.3)
    straight = augment(image, (labels, saliency), draw, CROP)
    flipped = augment(image, (labels, saliency), replace(draw, flipped=True), CROP)
    width = straight.extent[1]
    assert flipped.extent == straight.extent
    for name in ("image", "segmentation", "saliency"):
        one, two = getattr(straight, name), getattr(flipped, name)
        np.testing.assert_array_equal(two[..., :width], one[..., :width][..., ::-1])
        np.testing.assert_array_equal(two[..., width:], one[..., width:])


def test_flipping_the_source_is_flipping_the_crop_for_labels() -> None:
    labels = np.random.default_rng(0).integers(0, 9, (23, 31), dtype=np.uint8)
    image = np.repeat(labels[..., None], 3, axis=-1)
    draw = replace(PLAIN, scale=0.7)
    crop = replace(CROP, size=32)
    here = augment(image, (labels, labels), draw, crop).segmentation[:, :22]
    there = augment(image[:, ::-1].copy(), (labels[:, ::-1].copy(), labels), draw, crop)
    np.testing.assert_array_equal(there.segmentation[:, :22], here[:, ::-1])


def test_labels_are_resized_to_the_nearest_and_images_in_between() -> None:
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[:, 10:] = 200
    image = np.repeat(labels[..., None], 3, axis=-1)
    crop = augment(image, (labels, labels), replace(PLAIN, scale=1.3), replace(CROP, size=26))
    assert set(np.unique(crop.segmentation)) == {0, 200}
    assert set(np.unique(crop.image)) > {0, 200}
    edge = int(np.argmax(crop.segmentation[0]))
    assert (crop.image[0, 0, :edge] < 100).all()
    assert (crop.image[0, 0, edge:] >= 100).all()


def test_saliency_becomes_one_above_one_half() -> None:
    saliency = np.asarray([[0, 127, 128, 255]], dtype=np.uint8)
    image = np.zeros((1, 4, 3), dtype=np.uint8)
    crop = augment(image, (saliency, saliency), PLAIN, CROP)
    assert crop.saliency[0, :4].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("pad_label", [0, 255])
def test_short_sides_are_padded_on_the_right_and_at_the_bottom(pad_label: int) -> None:
    image, labels, saliency = numbered(10, 12)
    config = replace(CROP, pad_label=pad_label)  # type: ignore[arg-type]
    crop = augment(image + 1, (labels + 1, saliency), replace(PLAIN, flipped=True), config)
    assert crop.extent == (10, 12)
    for name in ("segmentation", "saliency"):
        assert (getattr(crop, name)[10:] == pad_label).all()
        assert (getattr(crop, name)[:, 12:] == pad_label).all()
    assert (crop.segmentation[:10, :12] > 0).all()
    assert (crop.image[:, :10, :12] > 0).all()
    assert (crop.image[:, 10:] == 0).all()
    assert (crop.image[:, :, 12:] == 0).all()


def test_without_labels_everything_is_ignored() -> None:
    crop = augment(numbered(10, 40)[0], None, PLAIN, CROP)
    assert (crop.segmentation == 255).all()
    assert (crop.saliency == 255).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3)])
@pytest.mark.parametrize("scale", [0.1, 0.7, 1.0, 1.3])
def test_images_of_any_size_give_a_crop(shape: tuple[int, int], scale: float) -> None:
    image = np.full((*shape, 3), 9, dtype=np.uint8)
    labels = np.full(shape, 1, dtype=np.uint8)
    draw = Draw(scale=scale, flipped=True, top=0.9, left=0.9)
    crop = augment(image, (labels, labels), draw, CROP)
    height, width = crop.extent
    assert (height, width) == tuple(min(16, resized(side, scale)) for side in shape)
    assert (crop.image[:, :height, :width] == 9).all()
    assert (crop.segmentation[:height, :width] == 1).all()


def test_sides_are_rounded_half_up() -> None:
    assert [resized(5, 0.5), resized(7, 0.5), resized(500, 0.7), resized(1, 0.1)] == [3, 4, 350, 1]


def test_draws_are_functions_of_their_keys_alone() -> None:
    one = draw_sample(0, 1, 2, "a", crop=CROP, batch_scale=1.0)
    assert one == draw_sample(0, 1, 2, "a", crop=CROP, batch_scale=1.0)
    others = [(1, 1, 2, "a"), (0, 2, 2, "a"), (0, 1, 3, "a"), (0, 1, 2, "b")]
    for seed, round, epoch, key in others:
        assert draw_sample(seed, round, epoch, key, crop=CROP, batch_scale=1.0) != one


def test_a_switch_changes_nothing_else() -> None:
    one = draw_sample(0, 0, 0, "a", crop=CROP, batch_scale=1.0)
    two = draw_sample(
        0, 0, 0, "a", crop=replace(CROP, scale_per="sample", flip_probability=1.0), batch_scale=1.0
    )
    assert (one.top, one.left) == (two.top, two.left)
    assert one.scale == 1.0
    assert two.scale != 1.0
    assert two.flipped


def test_scales_and_flips_follow_their_distributions() -> None:
    per_sample = replace(CROP, scale_per="sample")
    draws = [draw_sample(0, 0, 0, str(k), crop=per_sample, batch_scale=9.0) for k in range(2000)]
    scales = np.asarray([draw.scale for draw in draws])
    assert 0.7 <= scales.min() < 0.71
    assert 1.29 < scales.max() <= 1.3
    assert abs(scales.mean() - 1.0) < 0.02
    assert abs(np.mean([draw.flipped for draw in draws]) - 0.5) < 0.05
    never = replace(CROP, flip_probability=0.0)
    assert not any(
        draw_sample(0, 0, 0, str(k), crop=never, batch_scale=1.0).flipped for k in range(50)
    )


def test_batch_scales_differ_by_step_and_stay_in_range() -> None:
    scales = [draw_batch_scale(0, 0, 0, step, CROP) for step in range(100)]
    assert len(set(scales)) == 100
    assert 0.7 <= min(scales) < max(scales) <= 1.3
    fixed = replace(CROP, scale_min=1.0, scale_max=1.0)
    assert draw_batch_scale(0, 0, 0, 3, fixed) == 1.0
