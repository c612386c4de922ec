"""From the configuration to a network."""

from __future__ import annotations

from dataclasses import replace

import torch

from auxdist.config import ModelConfig
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.model.backbone import Backbone
from auxdist.model.efficientnet import EfficientNetLite0
from auxdist.model.resnet38 import ResNet38
from auxdist.model.small import SmallBackbone
from auxdist.model.timm_backbone import TimmBackbone


def build(config: ModelConfig) -> AuxSegNet:
    """A network with random weights, drawn from torch's global generator.

    Only a timm backbone comes with its weights, if they are asked for: timm alone can fit them.

    Raises:
        ConfigError: switches that contradict one another, or a timm backbone that does not fit.
    """
    backbone = _backbone(config)
    return AuxSegNet(
        backbone, config.num_classes, config.branch_channels, config.affinity, config.branches
    )


def build_shapes(config: ModelConfig) -> AuxSegNet:
    """The network with names and shapes alone, as cheap as can be; no weights are fetched.

    Raises:
        ConfigError: as `build`.
    """
    # Some networks of timm compute with tensors as they are made, which needs their values.
    with torch.device("cpu" if config.backbone == "timm" else "meta"):
        return build(replace(config, weights=None))


def _backbone(config: ModelConfig) -> Backbone:
    match config.backbone:
        case "resnet38":
            return ResNet38()
        case "efficientnet-lite0":
            return EfficientNetLite0()
        case "small":
            return SmallBackbone(config.small_width)
        case "timm":
            return TimmBackbone(config.timm_name or "", config.is_fetched)
