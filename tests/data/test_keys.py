"""Random streams are functions of their purpose, and fixed for good."""

from __future__ import annotations

import numpy as np

from auxdist.data.keys import generator, noise_key, permutation

GOLDEN_UNIFORM = [0.2869042865147978, 0.7181042675515151, 0.2224990647389843]
GOLDEN_PERMUTATION = [2, 6, 3, 4, 7, 5, 1, 0]
GOLDEN_NOISE = 6378656225904676686


def test_streams_are_fixed_for_good() -> None:
    assert generator(0, 1, 2, "augment", "a").random(3).tolist() == GOLDEN_UNIFORM
    assert permutation(generator(0, 1, 2, "shards"), 8).tolist() == GOLDEN_PERMUTATION
    assert noise_key(0, 1, 2, "a") == GOLDEN_NOISE


def test_every_word_of_a_purpose_counts() -> None:
    purposes: list[tuple[int, int, int, tuple[str | int, ...]]] = [
        (0, 0, 0, ("ab",)),
        (1, 0, 0, ("ab",)),
        (0, 1, 0, ("ab",)),
        (0, 0, 1, ("ab",)),
        (0, -1, 0, ("ab",)),
        (0, 0, 0, ("a", "b")),
        (0, 0, 0, ("1",)),
        (0, 0, 0, (1,)),
        (0, 0, 0, ()),
    ]
    values = {generator(s, r, e, *names).random() for s, r, e, names in purposes}
    assert len(values) == len(purposes)


def test_permutation_holds_everything_once() -> None:
    order = permutation(generator(0, 0, 0), 1000)
    assert sorted(order.tolist()) == list(range(1000))
    assert order.dtype == np.int64
    assert permutation(generator(0, 0, 0), 0).tolist() == []


def test_noise_keys_fit_an_int64_and_differ_by_sample_epoch_and_round() -> None:
    keys = {noise_key(0, r, e, k) for r in (-1, 0) for e in (0, 1) for k in ("a", "b")}
    assert len(keys) == 8
    assert all(0 <= key < 2**63 for key in keys)
