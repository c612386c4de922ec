"""AuxSegNet+ against the text of method.md 4.1 to 4.5, one image and one position at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from model_cases import GivenFeatures
from torch import Tensor

from auxdist.config import AffinityConfig
from auxdist.model.auxsegnet import AuxSegNet

CLASSES, CHANNELS, SIZE = 3, 12, (5, 6)
NUM_POSITIONS = SIZE[0] * SIZE[1]


def peaked_net(affinity: AffinityConfig) -> AuxSegNet:
    """An fp32 network every part of which has a say: peaked affinities, open gates."""
    torch.manual_seed(3)
    net = AuxSegNet(GivenFeatures(CHANNELS), CLASSES, CHANNELS, affinity).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5
            peak = 2 if "_att." in name or "_unary." in name else 1
            parameter.normal_(0, scale * peak)
    return net


def pixels(weights: dict[str, Tensor], name: str, maps: Tensor) -> Tensor:
    """A 1x1 convolution: (N, K) -> (N, L)."""
    weight = weights[f"{name}.weight"].flatten(1)
    bias = weights.get(f"{name}.bias")
    rows = [weight @ row + (0 if bias is None else bias) for row in maps]
    return torch.stack(rows)


def mixed(weights: dict[str, Tensor], name: str, pair: Tensor) -> tuple[Tensor, Tensor]:
    """(2, a, b) maps of the tasks -> their shares, each (a, b)."""
    hidden = F.conv2d(pair[None], weights[f"{name}.0.weight"], padding=1)[0].relu()
    a, b = hidden.shape[1:]
    scores = pixels(weights, f"{name}.2", hidden.reshape(2, -1).T).softmax(1)
    return scores[:, 0].reshape(a, b), scores[:, 1].reshape(a, b)


def reference(net: AuxSegNet, features: Tensor) -> dict[str, Tensor]:
    """Logits of an image (CHANNELS, h, w), before and after refinement, in fp64."""
    weights = {name: value.detach().double() for name, value in net.named_parameters()}
    switches = net.affinity

    def dilated(name: str, maps: Tensor, dilation: int) -> Tensor:
        found = F.conv2d(
            maps[None],
            weights[f"{name}.weight"],
            weights[f"{name}.bias"],
            padding=dilation,
            dilation=dilation,
        )
        return found[0].relu()

    logits, pairwise, unaries = {}, {}, {}
    for task in ("seg", "sal"):
        hidden = dilated(f"{task}_conv1", features.double(), 6)
        hidden = dilated(f"{task}_conv2", hidden, 12)
        rows = hidden.flatten(1).T  # (N, D)
        theta = pixels(weights, f"{task}_att.theta", rows)
        phi = pixels(weights, f"{task}_att.phi", rows)
        if switches.whiten:
            theta, phi = theta - theta.mean(0), phi - phi.mean(0)
        scores = torch.tensor([[float(q @ k) for k in phi] for q in theta]).double()
        pairwise[task] = scores.softmax(1)
        values = pixels(weights, f"{task}_g", rows)
        context = [sum(a * v for a, v in zip(row, values, strict=True)) for row in pairwise[task]]
        if switches.unary:
            unaries[task] = pixels(weights, f"{task}_unary", rows)[:, 0].softmax(0)
            shared = sum(u * v for u, v in zip(unaries[task], values, strict=True))
            context = [each + shared for each in context]
        enhanced = rows + pixels(weights, f"{task}_W", torch.stack(context))
        hidden = dilated(f"{task}_conv3", enhanced.T.reshape(hidden.shape), 18)
        logits[task] = pixels(weights, f"{task}_conv4", hidden.flatten(1).T)  # (N, K)
    first, second = mixed(weights, "cross_att", torch.stack([pairwise["seg"], pairwise["sal"]]))
    cross = first * pairwise["seg"] + second * pairwise["sal"]
    found = {}
    for task, maps in logits.items():
        refined = cross @ maps
        if switches.unary_pred != "off":
            image = NUM_POSITIONS * torch.stack([unaries["seg"], unaries["sal"]])
            v_seg, v_sal = mixed(weights, "cross_unary", image.reshape(2, *SIZE))
            unary = v_seg.flatten() * unaries["seg"] + v_sal.flatten() * unaries["sal"]
            gate = weights[f"gamma_{task}"] if switches.unary_pred == "gated" else 1
            refined = refined + gate * (unary @ maps)
        found[task] = maps.T.reshape(-1, *SIZE)
        found[f"{task} refined"] = refined.T.reshape(-1, *SIZE)
    return found


@pytest.mark.parametrize(
    "affinity",
    [
        AffinityConfig(),
        AffinityConfig(whiten=True),
        AffinityConfig(whiten=True, unary=True),
        AffinityConfig(whiten=True, unary=True, unary_pred="gated"),
        AffinityConfig(whiten=True, unary=True, unary_pred="add"),
    ],
    ids=["auxsegnet", "whitened", "unary features", "gated", "added"],
)
@pytest.mark.parametrize("row_block", [0, 7])
def test_logits_follow_the_text_of_the_method(affinity: AffinityConfig, row_block: int) -> None:
    net = peaked_net(AffinityConfig(**{**vars(affinity), "row_block": row_block}))
    features = torch.randn(2, CHANNELS, *SIZE).relu()
    with torch.no_grad():
        out = net(features)
    for number, image in enumerate(features):
        found = {
            "seg": out.segmentation[number],
            "seg refined": out.segmentation_refined[number],
            "sal": out.saliency[number],
            "sal refined": out.saliency_refined[number],
        }
        for name, expected in reference(net, image).items():
            error = (found[name] - expected).abs().max() / expected.abs().max()
            assert float(error) < 1e-5, name
