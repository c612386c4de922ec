"""SGD with the published parameter groups and polynomial decay (method.md 2.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from auxdist.config import OptimiserConfig

MOMENTUM = "momentum_buffer"


def poly(step: int, total_steps: int, power: float) -> float:
    """Decay factor (1 - step / total_steps)^power of the learning rate."""
    return float((1.0 - step / total_steps) ** power)


def make_sgd(
    groups: Mapping[str, Sequence[nn.Parameter]], config: OptimiserConfig
) -> torch.optim.SGD:
    """SGD over the groups "backbone" (1x) and "heads" (head_factor x the learning rate).

    Parameters that need no gradient are left out, and so are groups without any other.
    """
    factor = {"backbone": 1.0, "heads": config.head_factor}
    parameter_groups = [
        {"params": trained, "name": name, "base_lr": config.learning_rate * factor[name]}
        for name, parameters in groups.items()
        if (trained := [p for p in parameters if p.requires_grad])
    ]
    return torch.optim.SGD(
        parameter_groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        foreach=True,
    )


def set_learning_rates(optimiser: torch.optim.Optimizer, decay: float) -> None:
    """Give every group its base learning rate times `decay`."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * decay


def momentum_of(
    optimiser: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]
) -> dict[str, Tensor]:
    """The momentum buffers by parameter name."""
    return {
        names[parameter]: optimiser.state[parameter][MOMENTUM].detach()
        for group in optimiser.param_groups
        for parameter in group["params"]
        if optimiser.state[parameter].get(MOMENTUM) is not None
    }


def restore_momentum(
    optimiser: torch.optim.Optimizer,
    names: Mapping[nn.Parameter, str],
    momentum: Mapping[str, Tensor],
) -> None:
    """Put momentum buffers back; a parameter without one starts afresh."""
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if (buffer := momentum.get(names[parameter])) is not None:
                optimiser.state[parameter][MOMENTUM] = buffer.to(parameter.device, copy=True)
