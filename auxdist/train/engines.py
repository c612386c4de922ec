"""The engine that a configuration asks for, and its precision."""

from __future__ import annotations

import torch
from torch import nn

from auxdist.config import TrainConfig
from auxdist.records import Batch, Losses, Normaliser
from auxdist.train.ddp import DdpEngine
from auxdist.train.engine import Engine, Trainee
from auxdist.world import World


class Cast(nn.Module):
    """Runs a module under autocast to `dtype`; weights and gradients stay fp32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype

    def forward(self, batch: Batch, normaliser: Normaliser) -> Losses:
        """`module` of the same arguments."""
        device = batch.image.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            losses: Losses = self.module(batch, normaliser)
        return losses


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_engine(trainee: Trainee, config: TrainConfig, world: World) -> Engine:
    """The engine that the configuration asks for."""
    module = Cast(trainee.objective, PRECISIONS[config.precision])
    if config.engine == "deepspeed":
        from auxdist.train.zero import ZeroEngine

        return ZeroEngine(trainee, module, world)
    return DdpEngine(trainee, module, world)
