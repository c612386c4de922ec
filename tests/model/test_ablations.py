"""What an ablation leaves out is not there: no parameter, no loss, no refinement."""

from typing import Any

import pytest
import torch
from model_cases import CLASSES, normaliser, random_batch, small_net
from torch import Tensor, nn

from auxdist.config import BranchesConfig
from auxdist.errors import ConfigError
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.model.objective import SegmentationObjective

UNARY_OFF: dict[str, Any] = {"unary": False, "unary_pred": "off"}
NO_SALIENCY = BranchesConfig(saliency=False)
NO_CLASSIFICATION = BranchesConfig(classification=False)
VARIANTS = {
    "features only": small_net(predictions="off", unary_pred="off"),
    "predictions only": small_net(features=False),
    "own": small_net(predictions="own"),
    "no affinity": small_net(predictions="off", features=False, **UNARY_OFF),
    "no saliency": small_net(branches=NO_SALIENCY, predictions="own"),
    "no saliency, no affinity": small_net(
        branches=NO_SALIENCY, predictions="off", features=False, **UNARY_OFF
    ),
    "no classification": small_net(branches=NO_CLASSIFICATION),
}


def images() -> Tensor:
    torch.manual_seed(7)
    return torch.randn(2, 3, 40, 48, dtype=torch.float64)


def layers(net: AuxSegNet) -> set[str]:
    """Layers of the heads."""
    return {name.split(".")[0] for name, _ in net.named_parameters()} - {"backbone"}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_trained_parameter_has_its_place_in_the_losses(name: str) -> None:
    objective = SegmentationObjective(VARIANTS[name]).train()
    for gamma in (p for n, p in objective.named_parameters() if "gamma" in n):
        nn.init.constant_(gamma, 0.5)
    batch = random_batch()
    objective(batch, normaliser(batch)).total.backward()
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    assert trained
    assert [n for n, p in trained.items() if p.grad is None] == []
    assert {id(p) for group in objective.parameter_groups().values() for p in group} == {
        id(p) for p in trained.values()
    }


def test_without_the_saliency_branch_nothing_of_it_remains() -> None:
    net = VARIANTS["no saliency"]
    assert not any("sal" in layer or "cross" in layer for layer in layers(net))
    out = net.eval()(images())
    assert out.saliency is None
    assert out.saliency_refined is None
    batch = random_batch()
    parts = SegmentationObjective(net)(batch, normaliser(batch)).parts
    assert parts.keys() == {"classes", "segmentation", "segmentation_refined"}


def test_without_the_classification_branch_fc8_stays_and_still_gives_cams() -> None:
    net = VARIANTS["no classification"]
    objective, batch = SegmentationObjective(net), random_batch()
    assert "classes" not in objective(batch, normaliser(batch)).parts
    assert not net.fc8.weight.requires_grad
    assert net.eval()(images()).cam.shape == (2, CLASSES, 5, 6)


def test_own_refinement_uses_the_affinity_of_each_task_alone() -> None:
    net = small_net("auxsegnet", predictions="own").eval()
    assert "cross_att" not in layers(net)
    features = net.backbone(images(), None)
    out = net(images())
    assert out.saliency is not None
    assert out.saliency_refined is not None
    for task, before, after in (
        ("seg", out.segmentation, out.segmentation_refined),
        ("sal", out.saliency, out.saliency_refined),
    ):
        affinity = net._branch(task, features).affinity
        assert affinity is not None
        expected = (affinity.matrix @ before.flatten(2).transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(after.flatten(2), expected)
    seg = net._branch("seg", features).affinity
    assert seg is not None
    cams = (seg.matrix @ out.cam.flatten(2).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(out.affinity.apply(out.cam).flatten(2), cams)
    assert out.affinity.mixing() is None


@pytest.mark.parametrize("name", ["features only", "no affinity"])
def test_without_refinement_predictions_and_cams_stay_and_count_once(name: str) -> None:
    net, batch = VARIANTS[name].eval(), random_batch()
    out = net(images())
    assert torch.equal(out.segmentation_refined, out.segmentation)
    assert torch.equal(out.affinity.apply(out.cam), out.cam)
    parts = SegmentationObjective(net)(batch, normaliser(batch)).parts
    assert parts.keys() == {"classes", "saliency", "segmentation"}


def test_without_enhanced_features_the_third_convolution_sees_the_second() -> None:
    net = VARIANTS["predictions only"].eval()
    assert not {"seg_g", "seg_W"} & layers(net)
    seen: dict[str, Tensor] = {}
    net.get_submodule("seg_conv2").register_forward_hook(
        lambda _, inputs, output: seen.update(second=output)
    )
    net.get_submodule("seg_conv3").register_forward_pre_hook(
        lambda _, inputs: seen.update(third=inputs[0])
    )
    net(images())
    assert torch.equal(seen["third"], seen["second"].relu())


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"branches": NO_SALIENCY}, "predictions is cross, but model.branches.saliency is false"),
        ({"predictions": "off"}, "unary_pred is gated, but model.affinity.predictions is off"),
        ({"features": False, "unary_pred": "off"}, "neither features nor predictions use it"),
    ],
)
def test_switches_that_contradict_one_another_are_refused(
    switches: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_net(**switches)
