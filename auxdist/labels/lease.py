"""Sharing out shards: who is faster takes more."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from auxdist.world import World


def shards_to_do(world: World, purpose: str, num_shards: int) -> Iterator[int]:
    """Shards for this rank; over all ranks each of 0..num_shards-1 comes exactly once.

    Every rank must call this, and take from it until it ends: what one rank leaves, nobody does.
    Taking the rest without doing it makes the other ranks end after the shard that they are at.
    """
    # Queues live as long as the process group, so each use needs a name of its own.
    queue = f"{purpose}/{world.from_main(secrets.randbits(62)):016x}"
    while (shard := world.ticket(queue)) < num_shards:
        yield shard
