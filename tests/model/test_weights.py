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
from auxdist.model.weights import apply_weights, from_official, load_weights


@pytest.fixture(scope="module")
def net() -> AuxSegNet:
    return build(ModelConfig(num_classes=20, affinity=METHOD_AFFINITY["auxsegnet+"]))


def filled(net: AuxSegNet, value: float) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of `net` under its own name; one number takes the place of all elements."""
    for name, tensor in net.state_dict().items():
        yield name, torch.tensor(value).expand(tensor.shape)


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


def test_a_published_auxsegnet_loads_without_its_dead_weights(net: AuxSegNet) -> None:
    official = {
        "module." + name.removeprefix("backbone."): tensor
        for name, tensor in filled(net, 0.5)
        if "unary" not in name and "gamma" not in name
    }
    for task in ("seg", "sal"):
        official[f"module.{task}_att.g.weight"] = torch.zeros(128, 128, 1, 1)
        official[f"module.{task}_att.W_z.0.bias"] = torch.zeros(128)
        official[f"module.{task}_att.W_z.1.running_mean"] = torch.zeros(128)
    required = ("backbone.", "fc8.", "seg_conv", "sal_att", "cross_att")
    report = apply_weights(net, from_official(official), required)
    assert report.unexpected == ()
    assert all("unary" in name or "gamma" in name for name in report.missing)
    assert float(net.get_parameter("sal_att.theta.weight").detach().mean()) == 0.5


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
