"""Any convolutional network of timm that can be dilated to stride 8, as a backbone."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from auxdist.errors import ConfigError

STRIDE = 8


class TimmBackbone(nn.Module):
    """The last features of a timm network; every BatchNorm is frozen, as in the other backbones.

    Args:
        name: timm's name of the network
        pretrained: with the weights that timm fetches for it

    Raises:
        ConfigError: timm is not installed, or this network cannot give features at stride 8.
    """

    stride = STRIDE

    def __init__(self, name: str, pretrained: bool = False) -> None:
        super().__init__()
        timm = _timm()
        self.net = _create(timm, name, pretrained)
        info = self.net.feature_info
        if info.reduction()[-1] != STRIDE:
            raise ConfigError(_unfit(name, f"its features are at stride {info.reduction()[-1]}"))
        self.out_channels: int = info.channels()[-1]
        data = timm.data.resolve_model_data_config(self.net)
        self.mean = tuple(data["mean"])
        self.std = tuple(data["std"])
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> TimmBackbone:
        """As of any module, but every BatchNorm keeps its statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, image: Tensor, noise: Tensor | None) -> Tensor:
        """(B, 3, H, W) -> (B, out_channels, ceil(H / 8), ceil(W / 8))."""
        height, width = image.shape[2:]
        image = F.pad(image, (0, -width % STRIDE, 0, -height % STRIDE))  # some round down
        features: Tensor = self.net(image)[-1]
        return features

    def trainable_parameters(self) -> list[nn.Parameter]:
        """All but those of BatchNorms."""
        return [p for p in self.parameters() if p.requires_grad]


def _timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # torchvision raises either
        raise ConfigError(
            f"model.backbone is timm, but timm cannot be imported ({error}); run pip install timm, "
            "with the torchvision that belongs to this torch, or use another backbone."
        ) from error
    return timm


def _create(timm: Any, name: str, pretrained: bool) -> Any:
    if not timm.is_model(name):
        raise ConfigError(
            f"model.timm_name is {name}, which timm {timm.__version__} does not know; "
            "timm.list_models() names those that there are."
        )
    options = {"features_only": True, "out_indices": (-1,), "output_stride": STRIDE}
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except OSError as error:
        raise ConfigError(
            f"model.weights is imagenet, but timm cannot fetch those of {name} ({error}); fetch "
            "them once on a host with a network, or use weights: null."
        ) from error
    except (TypeError, NotImplementedError, AssertionError, ValueError, RuntimeError) as error:
        # timm has no way to ask: networks that cannot be dilated refuse in ways of their own
        raise ConfigError(_unfit(name, f"timm says: {error}")) from error


def _unfit(name: str, why: str) -> str:
    return (
        f"model.timm_name is {name}, which cannot give features at stride {STRIDE} ({why}); use "
        "one that can be dilated, e.g. resnet50."
    )
