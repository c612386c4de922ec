from __future__ import annotations

from typing import Any

import pytest
import torch
from model_cases import CLASSES, GivenFeatures, random_batch, small_net
from torch import Tensor

from auxdist.config import METHOD_AFFINITY, AffinityConfig, Method, ModelConfig
from auxdist.errors import ConfigError
from auxdist.model.auxsegnet import AuxSegNet, Projections
from auxdist.model.builder import build
from auxdist.ops.affinity import CrossTaskAffinity, TaskAffinity
from auxdist.records import Outputs

METHODS: tuple[Method, ...] = ("auxsegnet", "auxsegnet+")


def images(rows: int = 2, height: int = 40, width: int = 48) -> Tensor:
    torch.manual_seed(7)
    return torch.randn(rows, 3, height, width, dtype=torch.float64)


def stacked(out: Outputs, refined: bool = False) -> Tensor:
    saliency = out.saliency_refined if refined else out.saliency
    assert saliency is not None
    return torch.cat([out.segmentation_refined if refined else out.segmentation, saliency], 1)


def inputs_of(net: AuxSegNet, layer: str, image: Tensor) -> Tensor:
    """What goes into `layer` in a forward pass."""
    seen: list[Tensor] = []
    hook = net.get_submodule(layer).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    net(image)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(40, 48), (57, 35), (8, 8)])
def test_outputs_have_the_documented_shapes_for_any_size(
    method: Method, size: tuple[int, int]
) -> None:
    out = small_net(method).eval()(images(2, *size))
    h, w = -(-size[0] // 8), -(-size[1] // 8)
    assert out.classes.shape == (2, CLASSES)
    assert out.cam.shape == (2, CLASSES, h, w)
    assert stacked(out).shape == stacked(out, refined=True).shape == (2, CLASSES + 2, h, w)
    assert out.segmentation.shape == out.segmentation_refined.shape == (2, CLASSES + 1, h, w)
    assert out.affinity.apply(out.cam).shape == out.cam.shape


def test_switched_off_the_network_is_the_iccv_one_bit_for_bit() -> None:
    iccv, plus = small_net("auxsegnet").eval(), small_net("auxsegnet+").eval()
    off = small_net("auxsegnet+", unary=False, whiten=False, unary_pred="off").eval()
    assert off.state_dict().keys() == iccv.state_dict().keys() < plus.state_dict().keys()
    for name, value in iccv.state_dict().items():  # the same initial weights too
        assert torch.equal(value, plus.state_dict()[name]), name
    a, b = iccv(images()), off(images())
    assert torch.equal(stacked(a), stacked(b))
    assert torch.equal(stacked(a, refined=True), stacked(b, refined=True))
    assert not torch.equal(stacked(a), stacked(plus(images())))


def test_row_block_changes_memory_and_not_results() -> None:
    dense, blocked = (small_net(row_block=block).eval()(images()) for block in (0, 7))
    for refined in (False, True):
        torch.testing.assert_close(
            stacked(blocked, refined), stacked(dense, refined), rtol=1e-12, atol=1e-12
        )


def test_item_2_unary_affinities_sum_to_one_over_positions_and_tasks() -> None:
    net = small_net(unary_pred="add").eval()
    features = net.backbone(images(), None)
    seg, sal = (net._branch(task, features) for task in ("seg", "sal"))
    assert seg.unary is not None
    assert sal.unary is not None
    shared = net._cross_unary(torch.stack([seg.unary, sal.unary], 1), features.shape[2:])
    for unary in (seg.unary, sal.unary):
        torch.testing.assert_close(unary.sum(1), torch.ones(2, dtype=torch.float64))
    low, high = torch.minimum(seg.unary, sal.unary), torch.maximum(seg.unary, sal.unary)
    assert bool(((low - 1e-15 <= shared) & (shared <= high + 1e-15)).all())


@pytest.mark.parametrize("whiten", [False, True])
def test_item_3_whitening_makes_a_constant_added_to_theta_invisible(whiten: bool) -> None:
    torch.manual_seed(0)
    projections = Projections(6, whiten).double()
    features = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    before = TaskAffinity(projections(features)).matrix
    with torch.no_grad():
        assert projections.theta.bias is not None
        projections.theta.bias += torch.randn(6, dtype=torch.float64)
    after = TaskAffinity(projections(features)).matrix
    assert torch.allclose(before, after, rtol=1e-12, atol=1e-14) == whiten


def test_item_4_the_unary_term_of_the_predictions_is_the_same_everywhere() -> None:
    out = small_net(unary_pred="add").eval()(images())
    term = (stacked(out, refined=True) - out.affinity.apply(stacked(out))).detach()
    assert float(term.abs().max()) > 1e-3
    assert float(term.var((2, 3)).max()) < 1e-24


def test_item_4_the_unary_term_of_the_features_is_the_same_everywhere() -> None:
    with_unary = inputs_of(small_net(whiten=True).eval(), "seg_W", images())
    without = small_net("auxsegnet", whiten=True).eval()
    term = (with_unary - inputs_of(without, "seg_W", images())).detach()
    assert float(term.abs().max()) > 1e-3
    assert float(term.var((2, 3)).max()) < 1e-24


def test_item_5_with_a_gate_of_0_the_predictions_are_those_of_iccv() -> None:
    net = small_net("auxsegnet+").eval()
    assert net.gamma_seg.tolist() == net.gamma_sal.tolist() == [0]
    out = net(images())
    assert torch.equal(stacked(out, refined=True), out.affinity.apply(stacked(out)))


def test_gates_of_1_equal_the_added_term() -> None:
    gated, added = small_net(unary_pred="gated").eval(), small_net(unary_pred="add").eval()
    for gamma in (gated.gamma_seg, gated.gamma_sal):
        torch.nn.init.ones_(gamma)
    a, b = gated(images()), added(images())
    assert torch.equal(stacked(a, refined=True), stacked(b, refined=True))


def test_renormalised_rows_sum_to_one() -> None:
    out = small_net(renormalise_rows=True).eval()(images())
    ones = torch.ones_like(out.saliency)
    torch.testing.assert_close(out.affinity.apply(ones), ones)


def test_cams_are_made_without_dropout_and_classes_with() -> None:
    net, noise = small_net().train(), torch.tensor([1, 2])
    features = net.backbone(images(), None)
    logits, cam = net._classify(features, noise)
    plain, same = net._classify(features, None)
    assert torch.equal(cam, same)
    assert not torch.equal(logits, plain)
    torch.testing.assert_close(plain, cam.mean((2, 3)))


def test_classify_equals_the_classifier_of_the_whole_network() -> None:
    net = small_net().eval()
    out = net(images())
    logits, cam = net.classify(images())
    assert torch.equal(logits, out.classes)
    assert torch.equal(cam, out.cam)


def test_outputs_in_training_do_not_depend_on_the_split_of_the_batch() -> None:
    net, noise, image = small_net().train(), torch.arange(4), images(4)
    whole = net(image, noise)
    parts = [net(image[i : i + 2], noise[i : i + 2]) for i in (0, 2)]
    for name in ("classes", "saliency_refined", "segmentation_refined"):
        together = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(getattr(whole, name), together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("row_block", [0, 7])
@pytest.mark.parametrize("method", METHODS)
def test_bf16_autocast_gives_finite_fp32_outputs_and_exact_affinities(
    method: Method, row_block: int
) -> None:
    net = small_net(method, row_block=row_block).float().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(images().float(), torch.arange(2))
    for name in ("classes", "cam", "saliency_refined", "segmentation_refined"):
        value = getattr(out, name)
        assert value.dtype == torch.float32
        assert bool(value.isfinite().all())
    matrix = out.affinity.seg.matrix
    assert matrix.dtype == torch.float32
    net.eval()
    with torch.autocast("cpu", torch.bfloat16):
        seen = inputs_of(net, "seg_att", images().float())
        found = net(images().float()).affinity
    assert isinstance(found, CrossTaskAffinity)
    exact = TaskAffinity(net.get_submodule("seg_att")(seen)).matrix  # without autocast
    torch.testing.assert_close(found.seg.matrix, exact)
    stacked(out, refined=True).square().sum().backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(bool(grad.isfinite().all()) for grad in grads)


def test_prepare_normalises_and_blanks_what_is_not_image() -> None:
    batch, net = random_batch(rows=2, size=40), small_net()
    image = net.prepare(batch.image, batch.extent)
    pixel = batch.image[1, :, 4, 5].double() / 255
    expected = (pixel - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(image[1, :, 4, 5], expected.double(), rtol=1e-6, atol=1e-6)
    assert not image[0, :, 27:].any()
    assert bool((image[0, :, :27] != 0).any())
    assert torch.equal(net.prepare(batch.image)[1], image[1])


@pytest.mark.parametrize("method", METHODS)
def test_groups_hold_every_trained_parameter_once_and_the_mixers_learn_slowly(
    method: Method,
) -> None:
    net = small_net(method)
    groups = net.parameter_groups()
    names = {id(p): n for n, p in net.named_parameters()}
    grouped = {key: [names[id(p)] for p in group] for key, group in groups.items()}
    assert sorted(grouped["backbone"] + grouped["heads"]) == sorted(names.values())
    slow = {n.split(".")[0] for n in grouped["backbone"]} - {"backbone"}
    fast = {n.split(".")[0] for n in grouped["heads"]}
    plus = {"cross_unary", "gamma_seg", "gamma_sal"} if method == "auxsegnet+" else set()
    assert slow == {"cross_att"} | plus
    assert {"fc8", "seg_conv4", "sal_att", "sal_W"} <= fast


def published_count(net: AuxSegNet, channels: int = 128) -> int:
    """With the weights that published checkpoints carry and never use, for both tasks."""
    g = channels * channels + channels
    w_z = g + 2 * channels  # a convolution and a BatchNorm
    return sum(parameter.numel() for parameter in net.parameters()) + 2 * (g + w_z)


def test_item_10_parameter_counts() -> None:
    def parameters(method: Method, classes: int) -> AuxSegNet:
        with torch.device("meta"):
            affinity = METHOD_AFFINITY[method]
            return build(ModelConfig(num_classes=classes, affinity=affinity))

    iccv, plus = parameters("auxsegnet", 20), parameters("auxsegnet+", 20)
    assert published_count(iccv) == 115_382_122
    assert sum(p.numel() for p in iccv.parameters()) == 115_315_562
    assert sum(p.numel() for p in iccv.backbone.parameters()) == 105_070_912
    unary = 2 * 129 + (2 * 2 * 9 + 2 * 2 + 2) + 2  # m_t, the mixer, the gates
    assert sum(p.numel() for p in plus.parameters()) == 115_315_562 + unary
    trained = sum(p.numel() for p in iccv.parameter_groups()["backbone"])
    stem, batch_norms, cross_att = 3 * 64 * 9, 2 * 23_872, 36 + 4 + 2
    assert trained == 105_070_912 - stem - batch_norms + cross_att


def test_published_parameter_names() -> None:
    net = AuxSegNet(GivenFeatures(8), 20)
    branch = ["conv1", "conv2", "conv3", "att.theta", "att.phi", "g", "W"]
    expected = {"fc8.weight", "cross_att.0.weight", "cross_att.2.weight", "cross_att.2.bias"}
    for task in ("seg", "sal"):
        expected |= {f"{task}_{layer}.{kind}" for layer in branch for kind in ("weight", "bias")}
        expected.add(f"{task}_conv4.weight")
    assert set(net.state_dict()) == expected
    assert net.get_parameter("cross_att.0.weight").shape == (2, 2, 3, 3)
    assert net.get_parameter("cross_att.2.weight").shape == (2, 2, 1, 1)


def test_initial_weights_follow_the_method() -> None:
    torch.manual_seed(0)
    net = AuxSegNet(GivenFeatures(64), 20, affinity=METHOD_AFFINITY["auxsegnet+"])
    xavier = (2 / ((64 + 128) * 9)) ** 0.5
    assert float(net.get_parameter("seg_conv1.weight").detach().std()) == pytest.approx(
        xavier, rel=0.02
    )
    unary = net.get_parameter("sal_unary.weight").detach()
    assert float(unary.std()) == pytest.approx(0.01, rel=0.3)
    assert float(net.get_parameter("sal_unary.bias").detach()) == 0


@pytest.mark.parametrize("switches", [{"unary_pred": "gated"}, {"unary_pred": "add"}])
def test_a_unary_prediction_without_the_unary_affinity_is_refused(
    switches: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match=r"unary_pred is .*, but model.affinity.unary is false"):
        AuxSegNet(GivenFeatures(8), 3, affinity=AffinityConfig(**switches))
