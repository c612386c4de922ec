"""The adapter to timm. A stand-in takes timm's place: it drags in torchvision, which cannot be
imported beside every build of torch; where the real one can, it is tested too."""

import importlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from auxdist.config import ModelConfig
from auxdist.errors import ConfigError
from auxdist.model.builder import build
from auxdist.model.objective import SegmentationObjective
from auxdist.model.timm_backbone import TimmBackbone
from auxdist.model.weights import apply_weights, from_official


class FeatureList(nn.Module):
    """What timm's features_only gives, as far as the adapter uses it."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.feature_info = SimpleNamespace(channels=lambda: [12], reduction=lambda: [stride])

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features."""
        return [self.norm(self.conv(image))]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options with which networks were asked for."""
    options: dict[str, Any] = {}

    def create(name: str, **wanted: Any) -> FeatureList:
        if name == "vit":
            raise TypeError("unexpected keyword 'output_stride'")
        options.update(wanted, name=name)
        return FeatureList(16 if name == "coarse" else 8)

    data = SimpleNamespace(
        resolve_model_data_config=lambda net: {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    )
    known = ("plain", "coarse", "vit")
    fake = SimpleNamespace(
        __version__="0", is_model=known.__contains__, create_model=create, data=data
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    return options


def config(**changes: Any) -> ModelConfig:
    return ModelConfig(num_classes=3, backbone="timm", branch_channels=8, **changes)


def test_a_network_is_dilated_and_its_batch_norms_stay_frozen_in_training(
    asked: dict[str, Any],
) -> None:
    net = build(config(timm_name="plain"))
    assert asked == {
        "name": "plain",
        "pretrained": False,
        "features_only": True,
        "out_indices": (-1,),
        "output_stride": 8,
    }
    assert (net.fc8.in_channels, net.backbone.mean) == (12, (0.5, 0.4, 0.3))
    objective = SegmentationObjective(net).train()
    norm = net.get_submodule("backbone.net.norm")
    assert not norm.training
    assert not any(p.requires_grad for p in norm.parameters())
    assert net.get_parameter("backbone.net.conv.weight").requires_grad
    assert net.get_submodule("backbone.net.conv").training
    out = objective.net(torch.zeros(1, 3, 40, 48))
    assert out.segmentation.shape == (1, 4, 5, 6)


@pytest.mark.parametrize("size", [(40, 48), (41, 55), (3, 9)])
def test_features_are_rounded_up_whatever_the_network_does(
    asked: dict[str, Any], size: tuple[int, int]
) -> None:
    net = TimmBackbone("plain")
    net.net.conv = nn.Conv2d(3, 12, 8, stride=8)  # without padding it rounds down
    shape = net(torch.zeros(1, 3, *size), None).shape
    assert shape[2:] == (-(-size[0] // 8), -(-size[1] // 8))


def test_its_own_weights_fit_without_the_counters_of_its_batch_norms(asked: dict[str, Any]) -> None:
    net = build(config(timm_name="plain"))
    report = apply_weights(net, from_official(net.state_dict()))
    assert not report.missing


def test_weights_are_fetched_where_asked_for(asked: dict[str, Any]) -> None:
    build(config(timm_name="plain", weights="imagenet"))
    assert asked["pretrained"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5000", "which timm 0 does not know"),
        ("coarse", r"cannot give features at stride 8 \(its features are at stride 16\)"),
        ("vit", r"cannot give features at stride 8 \(timm says: unexpected keyword"),
    ],
)
def test_what_does_not_fit_is_refused(asked: dict[str, Any], name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TimmBackbone(name)


def test_without_timm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm cannot be imported .* pip install timm"):
        TimmBackbone("resnet18")


def test_a_real_network_of_timm() -> None:
    try:
        importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # torchvision raises either
        pytest.skip(f"timm cannot be imported here: {error}")
    net = TimmBackbone("resnet18")
    assert net(torch.zeros(1, 3, 65, 48), None).shape == (1, 512, 9, 6)
    with pytest.raises(ConfigError, match="cannot give features at stride 8"):
        TimmBackbone("vit_tiny_patch16_224")
