from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from model_cases import CLASSES, normaliser, random_batch
from torch import Tensor

from auxdist.model.losses import class_loss, count, saliency_loss, segmentation_loss
from auxdist.records import Batch


def logits(batch: Batch) -> dict[str, Tensor]:
    torch.manual_seed(3)
    rows = batch.image.shape[0]
    shapes = {
        "classes": (rows, CLASSES),
        "saliency": (rows, 1, 5, 5),
        "segmentation": (rows, CLASSES + 1, 5, 5),
    }
    return {
        name: torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for name, shape in shapes.items()
    }


def all_losses(batch: Batch, of: dict[str, Tensor]) -> list[Tensor]:
    whole = normaliser(batch)
    return [
        class_loss(of["classes"], batch, whole),
        saliency_loss(of["saliency"], batch, whole),
        segmentation_loss(of["segmentation"], batch, whole),
    ]


def test_losses_equal_the_means_of_the_framework() -> None:
    batch = random_batch()
    of = logits(batch)
    upsampled = {
        name: F.interpolate(of[name], size=(40, 40), mode="bilinear", align_corners=False)
        for name in ("saliency", "segmentation")
    }
    known = batch.saliency != 255
    expected = [
        F.multilabel_soft_margin_loss(of["classes"], batch.classes.double()),
        F.binary_cross_entropy_with_logits(
            upsampled["saliency"][:, 0][known], batch.saliency[known].double()
        ),
        F.cross_entropy(upsampled["segmentation"], batch.segmentation.long(), ignore_index=255),
    ]
    for found, value in zip(all_losses(batch, of), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


def test_count_is_of_samples_and_of_pixels_that_are_not_ignored() -> None:
    batch = random_batch(rows=3, size=40)
    batch = replace(batch, weight=torch.tensor([1.0, 0.0, 1.0]))
    assert count(batch).tolist() == [2, 2 * 1600 - 240, 2 * (1600 - 240)]
    assert count(batch).dtype == torch.float64


def test_rows_of_weight_0_change_nothing() -> None:
    batch = random_batch(rows=4)
    padded = replace(batch, weight=torch.tensor([1.0, 1.0, 1.0, 0.0]))
    of = logits(batch)
    short = {name: value[:3] for name, value in of.items()}
    for found, value in zip(
        all_losses(padded, of), all_losses(batch.part(0, 3), short), strict=True
    ):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_nothing_to_learn_from_is_a_loss_of_0_with_finite_gradients(weight: float) -> None:
    batch = random_batch(rows=2)
    batch = replace(
        batch,
        segmentation=torch.full_like(batch.segmentation, 255),
        saliency=torch.full_like(batch.saliency, 255),
        weight=torch.full((2,), weight),
    )
    of = logits(batch)
    losses = all_losses(batch, of)
    assert [float(loss.detach()) for loss in losses[1:]] == [0.0, 0.0]
    assert float(losses[0].detach()) == 0.0 or weight == 1.0
    torch.stack(losses).sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in of.values())


def test_half_precision_logits_are_summed_in_fp32() -> None:
    batch = random_batch(rows=1)
    of = {name: value.detach().bfloat16() for name, value in logits(batch).items()}
    assert all(loss.dtype == torch.float32 for loss in all_losses(batch, of))
