"""Small networks and random batches for tests of the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from auxdist.config import METHOD_AFFINITY, BranchesConfig, Method, ModelConfig
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.model.backbone import IMAGENET_MEAN, IMAGENET_STD
from auxdist.model.builder import build
from auxdist.model.losses import count
from auxdist.records import Batch, Normaliser

CLASSES = 5


class GivenFeatures(nn.Module):
    """A backbone whose features are its input."""

    stride = 8
    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels

    def forward(self, image: Tensor, noise: Tensor | None) -> Tensor:
        return image

    def trainable_parameters(self) -> list[nn.Parameter]:
        return []


def small_net(
    method: Method = "auxsegnet+",
    seed: int = 0,
    branches: BranchesConfig = BranchesConfig(),  # noqa: B008  (frozen)
    **switches: Any,
) -> AuxSegNet:
    """A narrow network with the small backbone, in fp64; `switches` of AffinityConfig."""
    torch.manual_seed(seed)
    affinity = replace(METHOD_AFFINITY[method], **switches)
    config = ModelConfig(
        method=method,
        num_classes=CLASSES,
        backbone="small",
        small_width=8,
        branch_channels=16,
        affinity=affinity,
        branches=branches,
    )
    return build(config).double()


def random_batch(rows: int = 4, size: int = 40, seed: int = 0) -> Batch:
    """Random images and labels; some padding, some ignored pixels."""
    torch.manual_seed(seed)
    extent = torch.full((rows, 2), size)
    extent[0, 0] = size - 13
    segmentation = torch.randint(0, CLASSES + 1, (rows, size, size), dtype=torch.uint8)
    saliency = torch.randint(0, 2, (rows, size, size), dtype=torch.uint8)
    segmentation[:, 3:9], saliency[-1, :, 5:11] = 255, 255
    return Batch(
        image=torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8),
        extent=extent,
        classes=torch.randint(0, 2, (rows, CLASSES)).float(),
        segmentation=segmentation,
        saliency=saliency,
        weight=torch.ones(rows),
        noise=torch.randint(-(2**62), 2**62, (rows,)),
        keys=tuple(f"sample-{row}" for row in range(rows)),
    )


def normaliser(batch: Batch) -> Normaliser:
    """As if this were the whole global batch."""
    return Normaliser(*count(batch).tolist())
