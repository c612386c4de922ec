"""The floating-point formats that the network computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from auxdist.config import Precision


def computing(device: str | torch.device, precision: Precision) -> AbstractContextManager[object]:
    """What runs inside computes in `precision`, but the affinities always in fp32; weights stay."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16")
