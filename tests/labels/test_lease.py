"""Sharing out shards."""

from auxdist.labels.lease import shards_to_do
from auxdist.world import World


def test_every_use_begins_with_the_first_shard() -> None:
    assert list(shards_to_do(World(), "labels", 3)) == [0, 1, 2]
    assert list(shards_to_do(World(), "labels", 2)) == [0, 1]


def test_what_was_taken_is_not_given_again() -> None:
    leases = shards_to_do(World(), "labels", 4)
    assert next(leases) == 0
    for _ in leases:
        pass
    assert list(leases) == []
