"""The dense CRFs of method.md 2.8 against stored results, pydensecrf2 and each other."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from auxdist.errors import ConfigError, DataError
from auxdist.ops import crf
from auxdist.ops.crf import saliency_crf, segmentation_crf
from auxdist.ops.crf_terms import (
    SALIENCY_KERNELS,
    SEGMENTATION_KERNELS,
    Kernels,
    saliency_unary,
)
from auxdist.ops.crf_torch import saliency_crf_batch, segmentation_crf_batch

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "densecrf.npz"


class Photograph(NamedTuple):
    """An image (96, 128, 3) with its inputs and the stored results."""

    image: np.ndarray
    probabilities: np.ndarray
    saliency: np.ndarray
    crf_saliency: np.ndarray
    crf_segmentation: np.ndarray
    crf_argmax: np.ndarray


def photograph(number: int) -> Photograph:
    with np.load(GOLDEN) as stored:
        values = {name: stored[f"{number}.{name}"] for name in Photograph._fields}
    probabilities = values["probabilities"].astype(np.float32)
    return Photograph(**values | {"probabilities": probabilities / probabilities.sum(0)})


@pytest.fixture(params=[0, 1])
def photo(request: pytest.FixtureRequest) -> Photograph:
    return photograph(request.param)


def batch_of_one(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array)[None] for array in arrays]


def small(height: int, width: int, labels: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random image, saliency and probabilities."""
    random = np.random.default_rng(height * 100 + width)
    image = random.integers(0, 256, (height, width, 3), np.uint8)
    probabilities = random.random((labels, height, width), np.float32)
    return image, random.random((height, width), np.float32), probabilities


# The numbers.


@pytest.mark.parametrize(
    ("saliency", "energies"),
    [
        (0.0, (0.0, 35.087)),
        (0.06, (0.0819, 5.2028)),
        (0.25, (0.4034, 2.3485)),
        (0.5, (1.0605, 1.0605)),
        (0.75, (2.3485, 0.4034)),
        (1.0, (35.087, 0.0)),
    ],
)
def test_saliency_unaries_are_those_of_the_method(
    saliency: float, energies: tuple[float, float]
) -> None:
    assert saliency_unary(np.array(saliency)) == pytest.approx(energies, abs=1e-4)
    assert saliency_unary(torch.tensor(saliency)).tolist() == pytest.approx(energies, abs=1e-4)


def test_saliency_crf_gives_the_stored_marginals(photo: Photograph) -> None:
    result = saliency_crf(photo.image, photo.saliency)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, photo.crf_saliency, rtol=0, atol=2e-6)


def test_segmentation_crf_gives_the_stored_marginals_and_labels(photo: Photograph) -> None:
    result = segmentation_crf(photo.image, photo.probabilities)
    assert result.dtype == np.float32
    assert np.mean(result.argmax(0) == photo.crf_argmax) >= 0.999
    # stored with 11 bits
    np.testing.assert_allclose(result, photo.crf_segmentation, rtol=0, atol=2**-11)


def test_torch_batch_gives_the_results_of_numba() -> None:
    photos = [photograph(0), photograph(1)]
    images, saliency, probabilities = (
        torch.from_numpy(np.stack([getattr(photo, name) for photo in photos]))
        for name in ("image", "saliency", "probabilities")
    )
    refined = saliency_crf_batch(images, saliency).numpy()
    marginals = segmentation_crf_batch(images, probabilities).numpy()
    for i, photo in enumerate(photos):
        single = saliency_crf(photo.image, photo.saliency)
        np.testing.assert_allclose(refined[i], single, rtol=0, atol=2e-6)
        many = segmentation_crf(photo.image, photo.probabilities)
        np.testing.assert_allclose(marginals[i], many, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_torch_batch_on_gpu_is_repeatable_and_gives_the_results_of_the_cpu() -> None:
    photo = photograph(0)
    image, probabilities = batch_of_one(photo.image, photo.probabilities)
    runs = [segmentation_crf_batch(image.cuda(), probabilities.cuda()).cpu() for _ in range(2)]
    assert torch.equal(*runs)
    expected = segmentation_crf_batch(image, probabilities)
    torch.testing.assert_close(runs[0], expected, rtol=0, atol=1e-5)


def test_both_crfs_agree_with_pydensecrf(photo: Photograph) -> None:
    dense = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    height, width = photo.saliency.shape
    cases: list[tuple[np.ndarray, np.ndarray, Kernels, int]] = [
        (
            saliency_unary(photo.saliency),
            saliency_crf(photo.image, photo.saliency)[None],
            SALIENCY_KERNELS,
            1,
        ),
        (
            -np.log(photo.probabilities),
            segmentation_crf(photo.image, photo.probabilities),
            SEGMENTATION_KERNELS,
            10,
        ),
    ]
    for unary, ours, kernels, iterations in cases:
        theirs = dense.DenseCRF2D(width, height, len(unary))
        theirs.setUnaryEnergy(unary.reshape(len(unary), -1).astype(np.float32))
        theirs.addPairwiseGaussian(sxy=kernels.gaussian_sxy, compat=kernels.gaussian_compat)
        theirs.addPairwiseBilateral(
            sxy=kernels.bilateral_sxy,
            srgb=kernels.bilateral_srgb,
            rgbim=photo.image,
            compat=kernels.bilateral_compat,
        )
        result = np.array(theirs.inference(iterations)).reshape(len(unary), height, width)
        np.testing.assert_allclose(ours, result[-len(ours) :], rtol=0, atol=1e-5)


def test_saliency_crf_is_the_segmentation_crf_of_two_labels() -> None:
    """One filter of the difference replaces the two filters of Q_0 and Q_1."""
    photo = photograph(1)
    probabilities = np.exp(-saliency_unary(photo.saliency)).astype(np.float32)
    two = segmentation_crf(photo.image, probabilities, kernels=SALIENCY_KERNELS, iterations=3)
    one = saliency_crf(photo.image, photo.saliency, iterations=3)
    np.testing.assert_allclose(one, two[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", [1, 8, 9, 30])
def test_any_number_of_labels_gives_marginals_as_in_torch(labels: int) -> None:
    image, _, probabilities = small(12, 17, labels)
    result = segmentation_crf(image, probabilities)
    np.testing.assert_allclose(result.sum(0), 1, rtol=1e-5)
    plain = segmentation_crf_batch(*batch_of_one(image, probabilities))[0]
    np.testing.assert_allclose(result, plain.numpy(), rtol=0, atol=1e-5)


# Repeatable, and robust.


def test_results_do_not_depend_on_threads_or_repetition() -> None:
    photo = photograph(0)
    first = segmentation_crf(photo.image, photo.probabilities, iterations=3)
    with ThreadPoolExecutor(3) as pool:
        again = pool.map(
            lambda _: segmentation_crf(photo.image, photo.probabilities, iterations=3), range(3)
        )
        assert all(np.array_equal(first, other) for other in again)


def test_saliency_that_rounds_above_1_counts_as_1() -> None:
    image, saliency, _ = small(9, 8)
    saliency[2] = 1
    above = np.nextafter(saliency, np.float32(2), where=saliency == 1, out=saliency.copy())
    np.testing.assert_array_equal(saliency_crf(image, above), saliency_crf(image, saliency))
    batches = [saliency_crf_batch(*batch_of_one(image, each)) for each in (above, saliency)]
    assert torch.equal(*batches)


def test_inputs_stay_as_they_were() -> None:
    image, saliency, probabilities = small(9, 8)
    before = image.copy(), saliency.copy(), probabilities.copy()
    saliency_crf(image, saliency)
    segmentation_crf(image, probabilities)
    for array, copy in zip((image, saliency, probabilities), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_arrays_in_any_memory_order_are_understood() -> None:
    image, saliency, probabilities = small(9, 8)
    np.testing.assert_array_equal(
        saliency_crf(np.asfortranarray(image), saliency.T.copy().T), saliency_crf(image, saliency)
    )
    np.testing.assert_array_equal(
        segmentation_crf(image[:, ::-1, ::-1], probabilities[..., ::-1]),
        segmentation_crf(image[:, ::-1, ::-1].copy(), probabilities[..., ::-1].copy()),
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)])
def test_tiny_images_work(size: tuple[int, int]) -> None:
    image, saliency, probabilities = small(*size)
    assert np.isfinite(saliency_crf(image, saliency)).all()
    np.testing.assert_allclose(segmentation_crf(image, probabilities).sum(0), 1, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("colour", [0, 255])
def test_certain_saliency_on_a_flat_image_stays_certain(value: float, colour: int) -> None:
    image = np.full((40, 50, 3), colour, np.uint8)
    result = saliency_crf(image, np.full((40, 50), value, np.float32))
    np.testing.assert_allclose(result, value, rtol=0, atol=1e-6)


def test_impossible_labels_give_no_nan() -> None:
    image, _, probabilities = small(10, 11)
    probabilities[1:] = 0
    probabilities[:, 4, 5] = 0
    result = segmentation_crf(image, probabilities)
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(result.argmax(0), 0)


def test_kernels_of_no_weight_leave_the_probabilities() -> None:
    image, _, probabilities = small(10, 11)
    probabilities /= probabilities.sum(0)
    kernels = dataclasses.replace(SEGMENTATION_KERNELS, gaussian_compat=0.0, bilateral_compat=0.0)
    result = segmentation_crf(image, probabilities, kernels=kernels)
    np.testing.assert_allclose(result, probabilities, rtol=1e-4)


def test_without_numba_torch_gives_the_same_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    image, saliency, probabilities = small(12, 13)
    expected = saliency_crf(image, saliency), segmentation_crf(image, probabilities)
    monkeypatch.setattr(crf, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="pip install numba"):
        found = saliency_crf(image, saliency), segmentation_crf(image, probabilities)
    for theirs, ours in zip(found, expected, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)


# Errors.


def both(image: Any, saliency: Any) -> list[Any]:
    return [
        lambda: saliency_crf(image, saliency),
        lambda: saliency_crf_batch(*batch_of_one(image, saliency)),
    ]


def test_what_is_no_image_is_refused() -> None:
    image, saliency, _ = small(6, 5)
    for wrong in (image[:, :, :1], image.astype(np.float32), image[:0]):
        for run in both(wrong, saliency):
            with pytest.raises(DataError, match=r"expected \((B, )?H, W, 3\) uint8 RGB"):
                run()


def test_values_of_another_size_are_refused() -> None:
    image, saliency, probabilities = small(6, 5)
    with pytest.raises(DataError, match=r"\(5, 6\) float32, expected \(6, 5\) floats"):
        saliency_crf(image, np.ascontiguousarray(saliency.T))
    with pytest.raises(DataError, match=r"expected \(6, 5\) floats, the size of the image"):
        saliency_crf(image, (saliency * 255).astype(np.uint8))
    with pytest.raises(DataError, match=r"expected \(K, 6, 5\) floats"):
        segmentation_crf(image, probabilities[:0])
    with pytest.raises(DataError, match=r"expected \(1, K, 6, 5\) floats"):
        segmentation_crf_batch(*batch_of_one(image, probabilities[:, :5]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1])
def test_values_that_are_no_probabilities_are_refused(value: float) -> None:
    image, saliency, probabilities = small(6, 5)
    saliency[2, 3] = probabilities[1, 2, 3] = value
    for run in [*both(image, saliency), lambda: segmentation_crf(image, probabilities)]:
        with pytest.raises(DataError, match="expected finite values from 0"):
            run()


def test_saliency_of_8_bits_is_refused() -> None:
    image, saliency, _ = small(6, 5)
    for run in both(image, saliency * 255):
        with pytest.raises(DataError, match="divide 8-bit maps by 255"):
            run()


def test_impossible_kernels_are_refused_with_all_faults() -> None:
    with pytest.raises(ConfigError) as error:
        Kernels(0.0, 3.0, 60.0, float("nan"), -1.0)
    assert error.value.problems == [
        "dense CRF: gaussian_sxy is 0.0, expected more than 0.",
        "dense CRF: bilateral_srgb is nan, expected more than 0.",
        "dense CRF: bilateral_compat is -1.0, expected 0 or more.",
    ]
