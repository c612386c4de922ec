from __future__ import annotations

from typing import Any

import pytest
import torch

from auxdist.model.resnet38 import Bottleneck, ResBlock, ResNet38


@pytest.fixture(scope="module")
def net() -> ResNet38:
    return ResNet38()


def test_stem_and_batch_norms_are_frozen_and_all_else_is_trained(net: ResNet38) -> None:
    trained = {id(parameter) for parameter in net.trainable_parameters()}
    for name, parameter in net.named_parameters():
        frozen = name.startswith("conv1a") or "bn" in name
        assert (id(parameter) in trained) != frozen, name
        assert parameter.requires_grad != frozen, name


def test_names_are_those_of_the_public_conversion(net: ResNet38) -> None:
    names = set(net.state_dict())
    blocks = [name for name, _ in net.named_children()]
    assert blocks == (
        ["conv1a", "b2", "b2_1", "b2_2", "b3", "b3_1", "b3_2", "b4"]
        + [f"b4_{i}" for i in range(1, 6)]
        + ["b5", "b5_1", "b5_2", "b6", "b7", "bn7"]
    )
    assert "b2.conv_branch1.weight" in names
    assert "b2_1.conv_branch1.weight" not in names
    assert {"b6.bn_branch2b2.running_var", "b7.conv_branch2b2.weight", "bn7.bias"} <= names
    assert not any("dropout" in name for name in names)


def test_strides_and_dilations_are_those_of_the_table(net: ResNet38) -> None:
    found: dict[str, Any] = {}
    for name, block in net.named_children():
        if isinstance(block, ResBlock | Bottleneck):
            first, second = block.conv_branch2a, block.conv_branch2b1
            found[name] = (first.stride[0], first.dilation[0], second.dilation[0])
    assert found["b2"] == found["b3"] == found["b4"] == (2, 1, 1)
    assert found["b4_5"] == (1, 1, 1)
    assert found["b5"] == (1, 1, 2)
    assert found["b5_1"] == found["b5_2"] == (1, 2, 2)
    assert found["b6"] == found["b7"] == (1, 1, 4)


def test_odd_images_give_features_an_eighth_as_large_rounded_up(net: ResNet38) -> None:
    with torch.no_grad():
        assert net.eval()(torch.randn(1, 3, 33, 43), None).shape == (1, 4096, 5, 6)


def test_dropout_follows_the_keys_in_training_only(net: ResNet38) -> None:
    image, noise = torch.randn(1, 3, 17, 17), torch.tensor([5])
    with torch.no_grad():
        plain = net.eval()(image, noise)
        assert torch.equal(net.train()(image, None), plain)
        dropped = net.train()(image, noise)
        assert torch.equal(net(image, noise), dropped)
        assert not torch.equal(net(image, noise + 1), dropped)
