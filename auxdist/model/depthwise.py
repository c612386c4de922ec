"""A depthwise 5x5 convolution that is trained in a fraction of the time on a CPU.

oneDNN takes many times as long for the weight gradient of a depthwise 5x5 kernel as for the
convolution itself, most of all in bf16, but not for that of a 3x3 kernel. The gradient of a tap
does not depend on the size of the kernel around it, so that of a 5x5 kernel is put together from
four 3x3 ones.

Shape legend: B images, C channels, H W image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 5
_PART = 3


def depthwise5x5(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, C, H, W) by one (5, 5) kernel for each channel, (C, 1, 5, 5) -> (B, C, H, W); stride 1.

    Computed in the type of `x`; zeros stand outside the image.
    """
    if x.device.type != "cpu":
        return F.conv2d(x, weight, bias, padding=2, groups=x.shape[1])
    result: Tensor = _Depthwise.apply(x, weight.to(x.dtype), bias.to(x.dtype))
    return result


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=2, groups=x.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _gradients(gradient, x, weight, 2, (True, False, False))[0]
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(gradient, x, weight)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """(C, 1, 5, 5); the middle row and column come out twice, the same."""
    height, width = x.shape[2:]
    step = SIDE - _PART
    around = F.pad(x, (step, step, step, step))
    result = torch.empty_like(weight)
    for top in (0, step):
        for left in (0, step):
            seen = around[:, :, top : top + height + step, left : left + width + step]
            seen = seen.contiguous(memory_format=torch.channels_last)
            taps = (..., slice(top, top + _PART), slice(left, left + _PART))
            result[taps] = _gradients(gradient, seen, weight[taps], 0, (False, True, False))[1]
    return result


def _gradients(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    padding: int,
    mask: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of input, weight and bias that `mask` asks for."""
    around = (padding, padding)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, (1, 1), around, (1, 1), False, (0, 0), x.shape[1], mask
    )
    return gradients
