"""The engine on DeepSpeed ZeRO stage 1: the optimiser's state is divided among the ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state
from torch import nn

from auxdist.errors import Diverged
from auxdist.records import Batch, Losses, Normaliser
from auxdist.train.engine import State, Trainee, weights_of
from auxdist.train.optimiser import MOMENTUM, make_sgd, set_learning_rates
from auxdist.world import World


class ZeroEngine:
    """Weights on every rank, optimiser state in parts. Its checkpoints are those of DdpEngine."""

    def __init__(self, trainee: Trainee, module: nn.Module, world: World) -> None:
        self._trainee = trainee
        self._world = world
        if world.device == "cpu":
            # DeepSpeed would compile a shared-memory all-reduce at its first start (a minute, and a
            # compiler on every node); gloo does that work (deepspeed 0.19.8, comm/torch.py).
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        with _local_rank(world):
            self._engine, self._optimiser, _, _ = deepspeed.initialize(
                model=module,
                optimizer=make_sgd(trainee.groups, trainee.optimiser),
                config=_settings(world),
                dist_init_required=False,
            )
        self._restore_momentum()

    def warm_up(self, batch: Batch, normaliser: Normaliser) -> None:
        """Run a batch forward; nothing of it is kept."""
        with torch.no_grad():
            self._engine(batch, normaliser)

    def accumulate(self, batch: Batch, normaliser: Normaliser, is_last: bool) -> Losses:
        """Forward and backward of one micro-batch."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        losses: Losses = self._engine(batch, normaliser)
        # DeepSpeed takes the mean over ranks; the global gradient is their sum.
        self._engine.backward(losses.total * self._world.size)
        if not is_last:
            self._engine.step()
        return losses

    def update(self, decay: float) -> float:
        """Apply the global gradient. ZeRO tells its norm only afterwards; weights that an infinite
        one may have spoilt are never saved.
        """
        set_learning_rates(self._optimiser, decay)
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise Diverged(f"the gradient's norm is {norm}; the newest checkpoint is still finite.")
        return norm

    def state(self) -> State:
        """Weights and momentum, gathered from the ranks' parts."""
        momentum = {
            name: safe_get_full_optimizer_state(parameter, MOMENTUM).cpu()
            for name, parameter in self._with_momentum()
        }
        return State(weights_of(self._trainee.net), momentum)

    def close(self) -> None:
        """Let go of the memory, of which DeepSpeed keeps references elsewhere."""
        self._engine.destroy()

    def _restore_momentum(self) -> None:
        if not (parameters := self._with_momentum()):
            return
        # DeepSpeed knows momentum buffers only after a first update (stage_1_and_2.py, 0.19.8).
        # Zeros are what that update would have begun with.
        sgd = self._optimiser.optimizer
        for group in sgd.param_groups:
            for part in group["params"]:
                sgd.state[part][MOMENTUM] = torch.zeros_like(part)
        self._optimiser._lazy_init_hp_params_optimizer_state()
        for name, parameter in parameters:
            if (buffer := self._trainee.momentum.get(name)) is not None:
                safe_set_full_optimizer_state(parameter, buffer.to(parameter.device), MOMENTUM)

    def _with_momentum(self) -> list[tuple[str, nn.Parameter]]:
        if not self._trainee.optimiser.momentum:
            return []
        return [(n, p) for n, p in self._trainee.net.named_parameters() if p.requires_grad]


@contextmanager
def _local_rank(world: World) -> Iterator[None]:
    """DeepSpeed takes the GPU of this number, also where a process sees but one."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(torch.device(world.device).index or 0)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before


def _settings(world: World) -> dict[str, Any]:
    """DeepSpeed's configuration. The loop splits global batches and sets learning rates itself."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world.size,
        # Of fp32 numbers that lie in memory while activations do; DeepSpeed's own size is 2 GB.
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 50_000_000},
        # torch's SGD is not on DeepSpeed's list of tried optimisers.
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # which DeepSpeed would else do, from a norm of 1
        "steps_per_print": 10**9,
    }
