"""The engine that a configuration asks for, and its precision."""

from __future__ import annotations

import os

from torch import nn

from auxdist.config import Precision, TrainConfig
from auxdist.model.precision import computing
from auxdist.records import Batch, Losses, Normaliser
from auxdist.train.ddp import DdpEngine
from auxdist.train.engine import Engine, Trainee
from auxdist.world import World


class Cast(nn.Module):
    """Computes a module in `precision`; weights and gradients stay fp32."""

    def __init__(self, module: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.module = module
        self.precision = precision

    def forward(self, batch: Batch, normaliser: Normaliser) -> Losses:
        """`module` of the same arguments."""
        with computing(batch.image.device, self.precision):
            losses: Losses = self.module(batch, normaliser)
        return losses


def make_engine(trainee: Trainee, config: TrainConfig, world: World) -> Engine:
    """The engine that the configuration asks for."""
    module = Cast(trainee.objective, config.precision)
    if config.engine == "deepspeed":
        if not world.device.startswith("cuda"):
            # Else it takes a GPU wherever there is one. Read when deepspeed is first imported.
            os.environ["DS_ACCELERATOR"] = "cpu"
        from auxdist.train.zero import ZeroEngine

        return ZeroEngine(trainee, module, world)
    return DdpEngine(trainee, module, world)
