from __future__ import annotations

import torch
from torch import Tensor

from auxdist.model.batchnorm import FrozenBatchNorm


def test_batch_norm_equals_the_framework_in_eval_mode_also_while_training() -> None:
    torch.manual_seed(0)
    reference = torch.nn.BatchNorm2d(6).double().eval()
    for tensor in reference.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape).to(tensor.dtype) + 0.5)
    frozen = FrozenBatchNorm(6).double().train()
    own = {k: v for k, v in reference.state_dict().items() if k != "num_batches_tracked"}
    frozen.load_state_dict(own)
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(frozen(x), reference(x).relu(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(frozen.running_mean, own["running_mean"])


def test_batch_norm_keeps_no_input_for_the_backward_pass() -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = FrozenBatchNorm(8)(x)
    assert sum(kept) <= out.numel() + 8  # the activation, which the next convolution keeps anyway
