from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from model_cases import CLASSES, normaliser, random_batch, small_net
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from auxdist.config import METHOD_AFFINITY, Method, ModelConfig
from auxdist.model.builder import build
from auxdist.model.objective import ClassifierObjective, SegmentationObjective
from auxdist.records import Batch, Normaliser

METHODS: tuple[Method, ...] = ("auxsegnet", "auxsegnet+")


def gradients(objective: nn.Module, parts: list[Batch], whole: Normaliser) -> dict[str, Tensor]:
    """Summed over `parts`, as ranks or micro-batches do; "loss" is the summed loss."""
    objective.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for part in parts:
        losses = objective(part, whole)
        losses.total.backward()
        total += losses.total.detach()
    found = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    return found | {"loss": total}


@pytest.mark.parametrize("kind", [ClassifierObjective, SegmentationObjective])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_micro_batches_add_up_to_that_of_the_global_batch(
    method: Method, kind: type[ClassifierObjective] | type[SegmentationObjective]
) -> None:
    batch = random_batch(rows=5)
    batch = replace(batch, weight=torch.tensor([1.0, 1, 1, 1, 0]))
    objective = kind(small_net(method)).train()
    whole = normaliser(batch)
    expected = gradients(objective, [batch], whole)
    for cuts in ([0, 2, 4, 5], [0, 1, 5]):
        parts = [batch.part(a, b) for a, b in pairwise(cuts)]
        found = gradients(objective, parts, whole)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


def test_parts_are_the_five_losses_and_sum_to_the_total() -> None:
    batch = random_batch()
    losses = SegmentationObjective(small_net())(batch, normaliser(batch))
    assert list(losses.parts) == [
        "classes",
        "saliency",
        "saliency_refined",
        "segmentation",
        "segmentation_refined",
    ]
    torch.testing.assert_close(sum(losses.parts.values()), losses.total.detach())
    assert not any(part.requires_grad for part in losses.parts.values())


def test_a_batch_without_any_label_gives_a_finite_step() -> None:
    batch = random_batch(rows=2)
    blank = torch.full_like(batch.segmentation, 255)
    batch = replace(batch, segmentation=blank, saliency=blank, weight=torch.zeros(2))
    objective = SegmentationObjective(small_net())
    found = gradients(objective, [batch], normaliser(batch))
    assert all(value.isfinite().all() for value in found.values())
    assert float(found["loss"]) == 0


def test_the_classifier_trains_the_backbone_and_fc8_only() -> None:
    objective = ClassifierObjective(small_net())
    batch = random_batch()
    trained = {n for n, p in objective.named_parameters() if p.requires_grad}
    assert trained == {
        f"net.{n}" for n in objective.net.state_dict() if n.startswith(("backbone.", "fc8."))
    }
    found = gradients(objective, [batch], normaliser(batch))
    assert found.keys() - {"loss"} == trained
    grouped = [p for group in objective.parameter_groups().values() for p in group]
    assert len(grouped) == len(trained)
    assert list(objective(batch, normaliser(batch)).parts) == ["classes"]


def test_the_rounds_train_again_what_the_classifier_froze() -> None:
    net = small_net()
    ClassifierObjective(net)
    objective = SegmentationObjective(net)
    assert all(parameter.requires_grad for parameter in objective.parameters())


# Softmax does not change when a constant is added to all its inputs, so these learn nothing.
SHIFTS = {
    "auxsegnet": {"seg_att.phi.bias", "sal_att.phi.bias"},
    "auxsegnet+": {
        *(f"{task}_att.{layer}.bias" for task in ("seg", "sal") for layer in ("theta", "phi")),
        *(f"{task}_unary.bias" for task in ("seg", "sal")),
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_item_12_every_trainable_parameter_receives_a_gradient(method: Method) -> None:
    objective = SegmentationObjective(small_net(method)).train()
    if method == "auxsegnet+":  # behind a closed gate the cross-task unary has none at first
        nn.init.constant_(objective.net.gamma_seg, 0.5)
    batch = random_batch()
    found = gradients(objective, [batch], normaliser(batch))
    trained = {n for n, p in objective.named_parameters() if p.requires_grad}
    assert found.keys() - {"loss"} == trained
    idle = {n.removeprefix("net.") for n in trained if float(found[n].abs().max()) < 1e-14}
    assert idle == SHIFTS[method]


def test_item_12_holds_for_the_published_backbone() -> None:
    torch.manual_seed(0)
    objective = SegmentationObjective(build(ModelConfig(affinity=METHOD_AFFINITY["auxsegnet+"])))
    batch = random_batch(rows=1, size=33)
    batch = replace(batch, classes=torch.ones(1, 20))
    found = gradients(objective.train(), [batch], normaliser(batch))
    trained = {n for n, p in objective.named_parameters() if p.requires_grad}
    assert found.keys() - {"loss"} == trained
    backbone = [name for name in trained if name.startswith("net.backbone.")]
    assert len(backbone) == 15 * 2 + 4 + 2 * 4  # residual blocks, their shortcuts, bottlenecks
    assert all(float(found[name].abs().max()) > 0 for name in backbone)


class OneDevice(TorchDispatchMode):
    """Refuses what a GPU would: operations on tensors of different devices, scalars apart."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if len(devices := {x.device.type for x in tensors if x.ndim}) > 1:
            raise AssertionError(f"{func} on {devices}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [ClassifierObjective, SegmentationObjective])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", ["small", "resnet38", "efficientnet-lite0"])
def test_a_pass_stays_on_its_device_and_never_waits_for_it(
    backbone: Any,
    method: Method,
    kind: type[ClassifierObjective] | type[SegmentationObjective],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shown without a GPU: meta tensors have no values, so reading one fails."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no meta
    config = ModelConfig(backbone=backbone, num_classes=CLASSES, affinity=METHOD_AFFINITY[method])
    objective = kind(build(config).to("meta")).train()
    batch = random_batch(rows=2, size=64)
    whole, batch = normaliser(batch), batch.to("meta")
    with OneDevice():
        objective(batch, whole).total.backward()
    trained = [p for p in objective.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in trained)
