from __future__ import annotations

import pytest
import torch

from auxdist.config import ModelConfig
from auxdist.model import dropout
from auxdist.model.builder import build
from auxdist.model.dropout import KeyedDropout2d, keyed_uniform


def keys(number: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(-(2**62), 2**62, (number,))


def test_mask_does_not_depend_on_who_shares_the_batch() -> None:
    layer, noise = KeyedDropout2d(0.5, "layer").train(), keys(6)
    features = torch.randn(6, 32, 2, 3)
    whole = layer(features, noise)
    alone = [layer(features[i : i + 1], noise[i : i + 1]) for i in range(6)]
    assert torch.equal(whole, torch.cat(alone))
    assert torch.equal(whole.flip(0), layer(features.flip(0), noise.flip(0)))


def test_whole_channels_are_zeroed_or_scaled() -> None:
    out = KeyedDropout2d(0.3, "layer").train()(torch.ones(8, 64, 4, 4), keys(8))
    assert torch.equal(out.amin((2, 3)), out.amax((2, 3)))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.7])


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5])
def test_share_of_zeroed_channels_is_the_probability(probability: float) -> None:
    out = KeyedDropout2d(probability, "layer").train()(torch.ones(500, 400, 1, 1), keys(500))
    assert float((out == 0).float().mean()) == pytest.approx(probability, abs=0.005)
    assert float(out.mean()) == pytest.approx(1, abs=0.01)


def test_layers_samples_and_channels_are_independent() -> None:
    noise = torch.arange(400)  # keys in a row, the worst case
    first = keyed_uniform(noise, 1, 300) - 0.5
    second = keyed_uniform(noise, 2, 300) - 0.5
    variance = 1 / 12
    pairs = [(first, second), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])]
    for a, b in pairs:
        assert abs(float((a * b).mean())) / variance < 0.015  # 5 standard errors
    assert float(first.var()) == pytest.approx(variance, rel=0.02)


def test_layer_names_give_different_masks() -> None:
    ones, noise = torch.ones(4, 64, 1, 1), keys(4)
    a, b = (KeyedDropout2d(0.5, name).train()(ones, noise) for name in ("b6", "b7"))
    assert not torch.equal(a, b)


def test_hash_is_that_of_splitmix64() -> None:
    # First outputs of the reference generator from state 0, top 24 bits.
    reference = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    state = torch.arange(3) * dropout._GOLDEN
    assert [value % 2**64 for value in dropout._splitmix64(state).tolist()] == reference


def test_rates_are_the_published_ones() -> None:
    with torch.device("meta"):
        net = build(ModelConfig(num_classes=20))
    found = {n: m.probability for n, m in net.named_modules() if isinstance(m, KeyedDropout2d)}
    assert found == {
        "backbone.b6.dropout_2b1": 0.3,
        "backbone.b6.dropout_2b2": 0.3,
        "backbone.b7.dropout_2b1": 0.5,
        "backbone.b7.dropout_2b2": 0.5,
        "cls_dropout": 0.5,
    }


def test_without_keys_or_in_eval_mode_nothing_is_dropped() -> None:
    layer, features = KeyedDropout2d(0.5, "layer"), torch.randn(2, 8, 3, 3)
    assert layer.train()(features, None) is features
    assert layer.eval()(features, keys(2)) is features
