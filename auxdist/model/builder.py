"""From the configuration to a network."""

from __future__ import annotations

from auxdist.config import ModelConfig
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.model.backbone import Backbone
from auxdist.model.efficientnet import EfficientNetLite0
from auxdist.model.resnet38 import ResNet38
from auxdist.model.small import SmallBackbone


def build(config: ModelConfig) -> AuxSegNet:
    """A network with random weights, drawn from torch's global generator.

    Raises:
        ConfigError: switches that contradict one another.
    """
    backbone = _backbone(config)
    return AuxSegNet(
        backbone, config.num_classes, config.branch_channels, config.affinity, config.branches
    )


def _backbone(config: ModelConfig) -> Backbone:
    match config.backbone:
        case "resnet38":
            return ResNet38()
        case "efficientnet-lite0":
            return EfficientNetLite0()
        case "small":
            return SmallBackbone(config.small_width)
