"""The data order: pure, complete, the same for every world (promises 1 and 2)."""

from __future__ import annotations

import hashlib
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

from auxdist.data.plan import Plan
from auxdist.errors import ConfigError, DataError

SIZES = [5, 1, 0, 7, 3, 4, 2, 6]
GOLDEN_ORDER = "be205cb75cd9355b"


def make_plan(sizes: list[int] | np.ndarray = SIZES, **changes: Any) -> Plan:
    """A small plan, with some of its values changed."""
    values: dict[str, Any] = {
        "seed": 0,
        "round": 0,
        "epochs": 2,
        "global_batch": 6,
        "shuffle_shards": 3,
        "last_batch": "pad",
    }
    return Plan(np.asarray(sizes, dtype=np.int64), **(values | changes))


def places(plan: Plan, steps: range) -> list[tuple[int, int]]:
    """(shard, sample) of every row of these steps."""
    rows = [plan.rows(step) for step in steps]
    return [p for r in rows for p in zip(r.shard.tolist(), r.sample.tolist(), strict=True)]


def epoch_places(plan: Plan, epoch: int = 0) -> list[tuple[int, int]]:
    """(shard, sample) of every sample of an epoch, without filling."""
    first = epoch * plan.steps_per_epoch
    return [p for p in places(plan, range(first, first + plan.steps_per_epoch)) if p[0] >= 0]


EVERYTHING = {(shard, sample) for shard, size in enumerate(SIZES) for sample in range(size)}


@pytest.mark.parametrize("shuffle_shards", [1, 3, 8, 100])
@pytest.mark.parametrize("global_batch", [1, 6, 7, 28, 50])
def test_every_sample_exactly_once_an_epoch(shuffle_shards: int, global_batch: int) -> None:
    plan = make_plan(shuffle_shards=shuffle_shards, global_batch=global_batch)
    for epoch in range(plan.epochs):
        seen = epoch_places(plan, epoch)
        assert len(seen) == len(EVERYTHING)
        assert set(seen) == EVERYTHING


def test_the_order_is_fixed_for_good() -> None:
    plan = make_plan()
    text = repr(places(plan, range(plan.total_steps)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == GOLDEN_ORDER


def test_the_order_differs_between_epochs_rounds_and_seeds() -> None:
    orders = [
        epoch_places(make_plan()),
        epoch_places(make_plan(), epoch=1),
        epoch_places(make_plan(round=1)),
        epoch_places(make_plan(round=-1)),
        epoch_places(make_plan(seed=1)),
    ]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_samples_of_different_shards_mix_within_a_window_only() -> None:
    plan = make_plan([50] * 8, shuffle_shards=4, global_batch=200)
    first, second = plan.rows(0), plan.rows(1)
    assert len(set(first.shard.tolist())) == 4
    assert len(set(first.shard[:20].tolist())) > 1
    assert not set(first.shard.tolist()) & set(second.shard.tolist())


def test_any_step_can_be_asked_for_in_any_order() -> None:
    forward, backward = make_plan(), make_plan()
    steps = range(forward.total_steps)
    expected = {step: places(forward, range(step, step + 1)) for step in steps}
    for step in reversed(steps):
        assert places(backward, range(step, step + 1)) == expected[step]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
def test_ranks_share_the_global_batch_in_equal_numbers(size: int) -> None:
    rows = make_plan().rows(0)
    shares = [rows.of_rank(rank, size) for rank in range(size)]
    assert {len(share.shard) for share in shares} == {-(-6 // size)}
    joined = np.concatenate([share.shard for share in shares])
    assert joined[:6].tolist() == rows.shard.tolist()
    assert (joined[6:] == -1).all()
    assert {(share.step, share.epoch) for share in shares} == {(0, 0)}


def test_a_short_last_batch_is_padded_or_dropped() -> None:
    padded, dropped = make_plan(), make_plan(last_batch="drop")
    assert (padded.num_samples, padded.steps_per_epoch, dropped.steps_per_epoch) == (28, 5, 4)
    last = padded.rows(4)
    assert (last.shard[:4] >= 0).all()
    assert last.shard[4:].tolist() == last.sample[4:].tolist() == [-1, -1]
    assert places(padded, range(4)) == places(dropped, range(4))
    assert (dropped.total_steps, dropped.rows(4).epoch, padded.rows(4).epoch) == (8, 1, 0)


def test_a_data_set_smaller_than_a_batch_is_one_padded_step() -> None:
    plan = make_plan([2, 1], global_batch=8)
    assert plan.steps_per_epoch == 1
    assert sorted(epoch_places(plan)) == [(0, 0), (0, 1), (1, 0)]
    assert len(plan.rows(0).shard) == 8


def test_dropping_the_only_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="only 3 samples and last_batch is drop"):
        make_plan([2, 1], global_batch=8, last_batch="drop")


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="hold no sample to train on"):
        make_plan([0, 0])


def test_a_billion_images_cost_neither_memory_nor_time() -> None:
    plan = make_plan(np.full(200_000, 5_000), shuffle_shards=16, global_batch=4096)
    assert plan.num_samples == 10**9
    tracemalloc.start()
    started = time.perf_counter()
    rows = plan.rows(plan.steps_per_epoch // 2)
    seconds = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(zip(rows.shard.tolist(), rows.sample.tolist(), strict=True))) == 4096
    assert peak < 20e6
    assert seconds < 2
