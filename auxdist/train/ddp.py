"""The engine on torch's DistributedDataParallel; the plain module where the world is one rank."""

from __future__ import annotations

import math
import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from auxdist.errors import Diverged
from auxdist.records import Batch, Losses, Normaliser
from auxdist.train.engine import State, Trainee, weights_of
from auxdist.train.optimiser import make_sgd, momentum_of, restore_momentum, set_learning_rates
from auxdist.world import World


class DdpEngine:
    """Every rank holds all weights and the whole optimiser."""

    def __init__(self, trainee: Trainee, module: nn.Module, world: World) -> None:
        self._trainee = trainee
        self._world = world
        self._optimiser = make_sgd(trainee.groups, trainee.optimiser)
        restore_momentum(self._optimiser, trainee.names, trainee.momentum)
        self._module = module
        if world.size > 1:
            self._module = _distributed(module)

    def warm_up(self, batch: Batch, normaliser: Normaliser) -> None:
        """Run a batch and forget its gradients.

        DDP lays its buckets out anew after its first backward pass, and the order of additions
        depends on them: with this, a resumed run adds as an uninterrupted one does.
        """
        self.accumulate(batch, normaliser, is_last=True)
        self._optimiser.zero_grad(set_to_none=True)

    def accumulate(self, batch: Batch, normaliser: Normaliser, is_last: bool) -> Losses:
        """Forward and backward of one micro-batch."""
        module = self._module
        context: AbstractContextManager[None] = nullcontext()
        if isinstance(module, DistributedDataParallel) and not is_last:
            context = module.no_sync()
        with context:
            losses: Losses = module(batch, normaliser)
            # DDP takes the mean over ranks; the global gradient is their sum.
            (losses.total * self._world.size).backward()
        return losses

    def update(self, decay: float) -> float:
        """Apply the global gradient; nothing changes when it is not finite."""
        gradients = [
            parameter.grad
            for group in self._optimiser.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            raise Diverged(f"the gradient's norm is {norm}; nothing was updated.")
        set_learning_rates(self._optimiser, decay)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return norm

    def state(self) -> State:
        """Weights and momentum; equal on all ranks."""
        momentum = momentum_of(self._optimiser, self._trainee.names)
        return State(
            weights_of(self._trainee.net), {name: m.cpu().clone() for name, m in momentum.items()}
        )

    def close(self) -> None:
        """Nothing is held elsewhere."""


def _distributed(module: nn.Module) -> DistributedDataParallel:
    """`module` under DDP. Its buffers are constants, so they are not sent round at every step."""
    with warnings.catch_warnings():
        # torch 2.13 deprecates the argument for one that torch 2.6 does not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(module, broadcast_buffers=False)
