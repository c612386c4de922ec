"""The published schedule and parameter groups."""

import pytest
import torch

from auxdist.config import OptimiserConfig
from auxdist.train.optimiser import (
    make_sgd,
    momentum_of,
    poly,
    restore_momentum,
    set_learning_rates,
)


@pytest.mark.parametrize(
    ("step", "backbone", "heads"),
    [
        (0, 7.0e-4, 7.0e-3),
        (1000, 6.84101e-4, 6.84101e-3),
        (19837, 3.75129e-4, 3.75129e-3),
        (39674, 5.08666e-8, 5.08666e-7),
    ],
)
def test_poly_values_of_the_published_schedule(step: int, backbone: float, heads: float) -> None:
    groups = {
        "backbone": [torch.nn.Parameter(torch.zeros(1))],
        "heads": [torch.nn.Parameter(torch.zeros(1))],
    }
    optimiser = make_sgd(groups, OptimiserConfig())
    set_learning_rates(optimiser, poly(step, 39_675, 0.9))
    rates = {group["name"]: group["lr"] for group in optimiser.param_groups}
    assert rates["backbone"] == pytest.approx(backbone, rel=1e-5)
    assert rates["heads"] == pytest.approx(heads, rel=1e-5)


def test_two_steps_of_sgd_by_hand() -> None:
    """v = m v + (g + d w), w = w - rate v: momentum 0.5, decay of weights 0.1, gradient 1."""
    weight = torch.nn.Parameter(torch.full((1,), 2.0))
    config = OptimiserConfig(learning_rate=0.1, head_factor=10, momentum=0.5, weight_decay=0.1)
    optimiser = make_sgd({"heads": [weight]}, config)
    set_learning_rates(optimiser, 0.25)
    for expected in (2 - 0.25 * 1.2, 1.7 - 0.25 * (0.5 * 1.2 + 1.17)):
        optimiser.zero_grad()
        weight.sum().backward()
        optimiser.step()
        assert weight.item() == pytest.approx(expected)


def test_parameters_without_gradient_are_left_out() -> None:
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    trained = torch.nn.Parameter(torch.zeros(1))
    optimiser = make_sgd({"backbone": [frozen], "heads": [frozen, trained]}, OptimiserConfig())
    assert [group["params"] for group in optimiser.param_groups] == [[trained]]


def test_restored_momentum_continues_bitwise() -> None:
    def steps(
        parameter: torch.nn.Parameter, optimiser: torch.optim.SGD, first: int, last: int
    ) -> None:
        for step in range(first, last):
            optimiser.zero_grad()
            (parameter * torch.sin(torch.arange(8.0) + step)).sum().backward()
            optimiser.step()

    config = OptimiserConfig(learning_rate=0.1, momentum=0.9)
    whole = torch.nn.Parameter(torch.ones(8))
    optimiser = make_sgd({"heads": [whole]}, config)
    steps(whole, optimiser, 0, 3)
    stopped, momentum = whole.detach().clone(), momentum_of(optimiser, {whole: "w"})
    momentum = {name: value.clone() for name, value in momentum.items()}
    steps(whole, optimiser, 3, 6)

    resumed = torch.nn.Parameter(stopped)
    again = make_sgd({"heads": [resumed]}, config)
    restore_momentum(again, {resumed: "w"}, momentum)
    steps(resumed, again, 3, 6)
    assert torch.equal(whole, resumed)
