from __future__ import annotations

import pytest
import torch

from auxdist.model.small import SmallBackbone


@pytest.mark.parametrize("size", [(112, 112), (97, 131), (8, 9)])
def test_features_are_an_eighth_of_the_image_rounded_up(size: tuple[int, int]) -> None:
    features = SmallBackbone(8)(torch.randn(2, 3, *size), None)
    assert features.shape == (2, 32, -(-size[0] // 8), -(-size[1] // 8))


def test_features_of_a_sample_do_not_depend_on_its_batch() -> None:
    net = SmallBackbone(8).double().train()
    image, noise = torch.randn(3, 3, 40, 40, dtype=torch.float64), torch.arange(3)
    alone = torch.cat([net(image[i : i + 1], noise[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(image, noise), alone, rtol=1e-12, atol=1e-12)


def test_it_is_small_and_wholly_trainable() -> None:
    net = SmallBackbone(32)
    number = sum(parameter.numel() for parameter in net.trainable_parameters())
    assert 300_000 < number < 1_000_000
    assert number == sum(parameter.numel() for parameter in net.parameters())
