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


def depthwise5x5(x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1) -> Tensor:
    """(B, C, H, W) by one (5, 5) kernel for each channel, (C, 1, 5, 5) -> (B, C, H, W); stride 1.

    Computed in the type of `x`; zeros stand outside the image.
    """
    if x.device.type != "cpu":
        return F.conv2d(x, weight, bias, 1, 2 * dilation, dilation, x.shape[1])
    result: Tensor = _Depthwise.apply(x, weight.to(x.dtype), bias.to(x.dtype), dilation)
    return result


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return F.conv2d(x, weight, bias, 1, 2 * dilation, dilation, x.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            padding = 2 * ctx.dilation
            of_x = _gradients(gradient, x, weight, padding, ctx.dilation, (True, False, False))[0]
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(gradient, x, weight, ctx.dilation)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """(C, 1, 5, 5); the middle row and column come out twice, the same."""
    height, width = x.shape[2:]
    step = (SIDE - _PART) * dilation
    around = F.pad(x, (step, step, step, step))
    result = torch.empty_like(weight)
    for row in (0, SIDE - _PART):
        for column in (0, SIDE - _PART):
            top, left = row * dilation, column * dilation
            seen = around[:, :, top : top + height + step, left : left + width + step]
            seen = seen.contiguous(memory_format=torch.channels_last)
            taps = (..., slice(row, row + _PART), slice(column, column + _PART))
            mask = (False, True, False)
            result[taps] = _gradients(gradient, seen, weight[taps], 0, dilation, mask)[1]
    return result


def _gradients(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    padding: int,
    dilation: int,
    mask: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of input, weight and bias that `mask` asks for."""
    around, apart = (padding, padding), (dilation, dilation)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, (1, 1), around, apart, False, (0, 0), x.shape[1], mask
    )
    return gradients
