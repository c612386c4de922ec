"""BatchNorm as a fixed affine map per channel: its statistics are not of any batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenBatchNorm(nn.Module):
    """ReLU(BatchNorm(x)) with fixed statistics, weight and bias.

    As a product and a sum with constants autograd keeps no input of it for the backward pass.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w), the same shape."""
        if not (x.requires_grad and torch.is_grad_enabled()):  # rounded as in published networks
            mean, var = self.running_mean, self.running_var
            return F.relu(F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps))
        scale, shift = self.affine()
        shape = (1, -1, 1, 1)
        with torch.autocast(x.device.type, enabled=False):  # on GPUs it would copy x in fp32 first
            y = torch.addcmul(shift.view(shape), x, scale.view(shape))
        return F.relu(y.to(x.dtype))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, both (C,): BatchNorm(x) = scale x + shift."""
        scale = (self.weight / (self.running_var + self.eps).sqrt()).detach()
        return scale, (self.bias - self.running_mean * scale).detach()
