"""The depthwise convolution equals the framework's, forwards and backwards."""

import torch
import torch.nn.functional as F
from torch import Tensor

from auxdist.model.depthwise import depthwise5x5


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = ((2, 6, 11, 8), (6, 1, 5, 5), (6,))
    x, weight, bias = (torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes)
    return x, weight, bias


def test_it_equals_the_framework() -> None:
    x, weight, bias = inputs()
    own = depthwise5x5(x, weight, bias)
    other = F.conv2d(x, weight, bias, padding=2, groups=6)
    torch.testing.assert_close(own, other)
    gradient = torch.randn_like(own)
    for found, expected in zip(
        torch.autograd.grad(own, (x, weight, bias), gradient),
        torch.autograd.grad(other, (x, weight, bias), gradient),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_gradients_equal_finite_differences() -> None:
    assert torch.autograd.gradcheck(depthwise5x5, inputs())


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    x, weight, bias = inputs()
    depthwise5x5(x.detach(), weight, bias.detach()).sum().backward()
    assert (x.grad, bias.grad) == (None, None)
    assert weight.grad is not None


def test_it_computes_in_the_type_of_its_input() -> None:
    x, weight, bias = inputs(torch.float32)
    out = depthwise5x5(x.bfloat16(), weight, bias)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    exact = inputs(torch.float32)
    depthwise5x5(*exact).sum().backward()
    assert exact[1].grad is not None
    torch.testing.assert_close(weight.grad, exact[1].grad, rtol=0.03, atol=0.5)
