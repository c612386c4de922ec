"""Sharing out shards."""

import pytest

from auxdist.labels import lease
from auxdist.labels.lease import shards_to_do
from auxdist.world import World


def test_every_use_begins_with_the_first_shard() -> None:
    assert list(shards_to_do(World(), "labels", 3)) == [0, 1, 2]
    assert list(shards_to_do(World(), "labels", 2)) == [0, 1]


def test_what_one_took_another_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease.secrets, "randbits", lambda bits: 7)  # the same queue for both
    one, other = (shards_to_do(World(), "test", 4) for _ in range(2))
    assert [next(one), next(other), *one, *other] == [0, 1, 2, 3]
