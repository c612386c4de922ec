"""How gradients of all ranks become one update: what every engine (ddp.py, zero.py) offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from auxdist.config import OptimiserConfig
from auxdist.records import Batch, Losses, Normaliser


@dataclass(frozen=True)
class Trainee:
    """What an engine trains: a network, and the module that turns a batch into its losses."""

    net: nn.Module
    objective: nn.Module
    groups: Mapping[str, list[nn.Parameter]]
    optimiser: OptimiserConfig
    momentum: Mapping[str, Tensor]
    """Momentum buffers to go on with, by the parameter's name in `net`; {}: none."""

    @property
    def names(self) -> dict[nn.Parameter, str]:
        """Names in `net` of its parameters."""
        return {parameter: name for name, parameter in self.net.named_parameters()}


@dataclass(frozen=True)
class State:
    """Weights (fp32) and momentum buffers on the CPU, by their names in the network."""

    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]


class Engine(Protocol):
    """Runs micro-batches and updates. Gradients add up over ranks and micro-batches."""

    def warm_up(self, batch: Batch, normaliser: Normaliser) -> None:
        """Run a batch and forget its gradients: buffers are laid out, lack of memory shows."""
        ...

    def accumulate(self, batch: Batch, normaliser: Normaliser, is_last: bool) -> Losses:
        """Forward and backward of one micro-batch; `is_last` completes the global batch."""
        ...

    def update(self, decay: float) -> float:
        """Apply the global gradient at base learning rates times `decay`; its 2-norm comes back.

        Raises:
            Diverged: the gradient is not finite.
        """
        ...

    def state(self) -> State:
        """The whole training state, on every rank (all ranks must call it)."""
        ...

    def close(self) -> None:
        """Let go of what would hold memory after the stage."""
        ...


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's weights on the CPU."""
    return {
        name: value.detach().to("cpu", torch.float32, copy=True)
        for name, value in net.state_dict().items()
    }
