"""One contract for both engines: the update is that of the global batch, whoever computes it."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn

from auxdist.config import OptimiserConfig, TrainConfig
from auxdist.errors import Diverged
from auxdist.model.losses import count
from auxdist.records import Batch, Losses, Normaliser
from auxdist.train.engine import State, Trainee
from auxdist.train.engines import make_engine
from auxdist.world import World

ROWS, STEPS = 8, 4
STEEPNESS = 20.0
"""Of the loss: its gradients are longer than 1, to which some libraries clip them unasked."""
OPTIMISER = OptimiserConfig(
    learning_rate=0.05 / STEEPNESS, head_factor=10, momentum=0.9, weight_decay=0.01
)


class Toy(nn.Module):
    """A network with both parameter groups and a frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 6, 3)
        self.head = nn.Conv2d(6, 2, 1)
        self.frozen = nn.Parameter(torch.ones(2, 1, 1), requires_grad=False)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"backbone": list(self.body.parameters()), "heads": list(self.head.parameters())}


class ToyObjective(nn.Module):
    """Mean squared output over the valid samples of the global batch."""

    def __init__(self, net: Toy) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Batch, normaliser: Normaliser) -> Losses:
        image = batch.image.float() / 255
        out = self.net.frozen * self.net.head(torch.relu(self.net.body(image)))
        error = (out.float() - batch.classes[:, :, None, None]).square().mean((1, 2, 3))
        total = STEEPNESS * (error * batch.weight).sum() / normaliser.samples
        return Losses(total, {"error": total.detach()})


def global_batch(step: int) -> Batch:
    noise = torch.Generator().manual_seed(step)
    weight = torch.ones(ROWS)
    weight[-1] = 0  # a row that only fills up
    return Batch(
        image=torch.randint(0, 256, (ROWS, 3, 12, 12), generator=noise, dtype=torch.uint8),
        extent=torch.full((ROWS, 2), 12),
        classes=torch.rand(ROWS, 2, generator=noise),
        segmentation=torch.zeros(ROWS, 12, 12, dtype=torch.uint8),
        saliency=torch.zeros(ROWS, 12, 12, dtype=torch.uint8),
        weight=weight,
        noise=torch.arange(ROWS),
        keys=tuple(map(str, range(ROWS))),
    )


def train(world: World, config: TrainConfig, first: int, last: int, state: State | None) -> State:
    net = Toy()
    if state is not None:
        net.load_state_dict(state.weights)
    momentum = state.momentum if state else {}
    trainee = Trainee(net, ToyObjective(net), net.groups(), OPTIMISER, momentum)
    engine = make_engine(trainee, config, world)
    for step in range(first, last):
        share = ROWS // world.size
        whole = global_batch(step)
        mine = whole.part(world.rank * share, (world.rank + 1) * share)
        normaliser = Normaliser(*world.all_sum(count(mine)).tolist())
        size = config.micro_batch or share
        parts = [mine.part(start, start + size) for start in range(0, share, size)]
        if step == first:
            engine.warm_up(parts[0], normaliser)
        for part in parts:
            engine.accumulate(part, normaliser, is_last=part is parts[-1])
        engine.update(decay=1 - step / STEPS)
    state = engine.state()
    engine.close()
    return state


def contract(world: World, engine: str) -> dict[str, Any]:
    """Everything an engine is asked to show, in one group of processes."""
    config = TrainConfig(engine=engine)  # type: ignore[arg-type]
    whole = train(world, config, 0, STEPS, None)
    split = train(world, replace(config, micro_batch=2), 0, STEPS, None)
    resumed = train(world, config, 2, STEPS, train(world, config, 0, 2, None))
    half = train(world, replace(config, precision="bf16"), 0, STEPS, None)
    return {
        "whole": arrays(whole),
        "split": arrays(split),
        "resumed": arrays(resumed),
        "bf16": arrays(half),
        "diverged": diverges(world, config),
    }


def arrays(state: State) -> dict[str, np.ndarray]:
    tensors: dict[str, Tensor] = state.weights | {f"m/{k}": v for k, v in state.momentum.items()}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def diverges(world: World, config: TrainConfig) -> bool:
    net = Toy()
    with torch.no_grad():
        net.head.weight.fill_(math.inf)
    trainee = Trainee(net, ToyObjective(net), net.groups(), OPTIMISER, {})
    engine = make_engine(trainee, config, world)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    engine.accumulate(global_batch(0), Normaliser(8, 1, 1), is_last=True)
    try:
        engine.update(1.0)
    except Diverged:
        after = net.state_dict()
        return all(torch.equal(value, after[name]) for name, value in before.items())
    return False


@pytest.fixture(scope="module")
def one_rank() -> dict[str, np.ndarray]:
    return arrays(train(World(), TrainConfig(), 0, STEPS, None))


@pytest.mark.parametrize(("engine", "size"), [("ddp", 2), ("ddp", 4), ("deepspeed", 2)])
def test_engine_contract(engine: str, size: int, one_rank: dict[str, np.ndarray]) -> None:
    if engine == "deepspeed":
        pytest.importorskip("deepspeed", reason="the extra auxdist[deepspeed] is not installed")
    results = run_ranks(size, contract, engine)
    for result in results:
        assert result["whole"].keys() == one_rank.keys()
        for name, expected in one_rank.items():
            for variant in ("whole", "split", "resumed"):
                np.testing.assert_allclose(
                    result[variant][name],
                    expected,
                    rtol=2e-5,
                    atol=1e-6,
                    err_msg=f"{variant} {name}",
                )
            np.testing.assert_allclose(result["bf16"][name], expected, rtol=0.1, atol=0.02)
            assert result["bf16"][name].dtype == np.float32
            np.testing.assert_array_equal(result["whole"][name], results[0]["whole"][name])
            np.testing.assert_array_equal(result["resumed"][name], result["whole"][name])
        assert result["diverged"]
    assert not np.array_equal(results[0]["bf16"]["body.weight"], one_rank["body.weight"])
    np.testing.assert_array_equal(results[0]["whole"]["frozen"], np.ones((2, 1, 1)))


def test_one_rank_diverges_before_its_weights_change() -> None:
    assert diverges(World(), TrainConfig())
