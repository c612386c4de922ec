"""The published network and backbone, by their stored outputs (method.md 6, items 1 and 10)."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_cases import GivenFeatures
from torch import Tensor

from auxdist.config import METHOD_AFFINITY
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.model.resnet38 import ResNet38

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def fill(name: str, shape: tuple[int, ...], scale: float) -> Tensor:
    """The rule of method.md 7."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy(np.float32(generator.standard_normal(shape)) * np.float32(scale))


def filled_heads(golden: dict[str, np.ndarray], row_block: int) -> tuple[AuxSegNet, Tensor]:
    seed, channels, h, w, batch, classes = golden["meta"].tolist()
    affinity = replace(METHOD_AFFINITY["auxsegnet"], row_block=row_block)
    net = (
        AuxSegNet(GivenFeatures(channels), classes - 1, affinity=affinity)
        .eval()
        .requires_grad_(False)
    )
    for name, parameter in net.named_parameters():
        fan_in = parameter[0].numel()
        scale = fan_in**-0.5 if parameter.ndim > 1 else 0.25
        value = fill(f"{seed}/{name}", tuple(parameter.shape), scale)
        if name.endswith(("theta.weight", "phi.weight")):
            value = value * float(golden["peak"])
        parameter.data.copy_(value)
    return net, fill(f"{seed}/x", (batch, channels, h, w), 1).relu()


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("row_block", [0, 16])
def test_item_1_method_auxsegnet_equals_the_published_heads(number: int, row_block: int) -> None:
    golden = dict(np.load(GOLDEN / f"heads_{number}.npz"))
    net, features = filled_heads(golden, row_block)
    check = golden["check.seg_conv1.weight.sum"]
    assert float(net.get_parameter("seg_conv1.weight").double().sum()) == pytest.approx(check)
    out = net(features)
    found = {
        "cls": out.classes,
        "cam": out.cam,
        "sal": out.saliency,
        "sal_refined": out.saliency_refined,
        "seg": out.segmentation,
        "seg_refined": out.segmentation_refined,
        "cross_affinity": out.affinity.matrix,
    }
    for name, value in found.items():
        expected = golden[f"out.{name}"]
        error = np.abs(value.numpy() - expected).max() / np.abs(expected).max()
        assert error < 1e-5, name


def test_resnet38_equals_the_published_backbone() -> None:
    golden = np.load(GOLDEN / "resnet38.npz")
    seed, (h, w) = int(golden["seed"]), golden["size"].tolist()
    net = ResNet38().eval().requires_grad_(False)
    for name, value in net.state_dict().items():
        value.copy_(backbone_fill(seed, name, value))
    image = fill(f"{seed}/image", (1, 3, h, w), 1)
    for features in (net(image, None), net.double()(image.double(), None)):
        assert list(features.shape) == golden["shape"].tolist()
        error = np.abs(features.flatten()[golden["pick"]].numpy() - golden["values"]).max()
        assert error / golden["std"] < 1e-5
        assert float(features.mean()) == pytest.approx(float(golden["mean"]), rel=1e-5)
        assert float(features.std()) == pytest.approx(float(golden["std"]), rel=1e-5)


def backbone_fill(seed: int, name: str, value: Tensor) -> Tensor:
    key, shape = f"{seed}/{name}", tuple(value.shape)
    if value.ndim > 1:
        return fill(key, shape, (2 / value[0].numel()) ** 0.5)
    if name.endswith("running_var"):
        return fill(key, shape, 1).abs() + 0.5
    if name.endswith("weight"):
        return 1 + fill(key, shape, 0.1)
    return fill(key, shape, 0.1)
