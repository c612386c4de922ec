"""The processes of a run: joining them, and waiting for the slowest."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from ranks import run_ranks
from torch.distributed.distributed_c10d import _set_pg_timeout

from auxdist import world
from auxdist.errors import DataError, LaunchError, PeerFailed
from auxdist.world import World

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)


def test_a_process_that_nothing_started_is_alone() -> None:
    """Without a launcher there is one rank, and no process group."""
    alone = world.join("cpu")

    assert (alone.rank, alone.size, alone.device) == (0, 1, "cpu")
    assert not torch.distributed.is_initialized()


def test_half_an_environment_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that sets WORLD_SIZE alone would otherwise wait for ranks that never come."""
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(LaunchError) as refused:
        world.join("cpu")

    text = str(refused.value)
    assert "WORLD_SIZE set but LOCAL_RANK, MASTER_ADDR, MASTER_PORT, RANK missing" in text
    assert "launch/local.py" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    """Who asked for a GPU is not given a CPU in silence."""
    with pytest.raises(LaunchError, match=r"torch sees no GPU, but compute.device is cuda"):
        world.join("cuda")


def caught(world: World, seconds: float, fails: int, ticks: bool = True) -> str:
    """What rank 0 and 1 get where rank 1 is busy so long, and rank `fails` meets bad data.

    The limit is 2 s, of collectives too; not when they join, for one may start much later.
    """
    world.barrier()
    _set_pg_timeout(timedelta(seconds=2))
    world = replace(world, timeout_s=2)
    try:
        with world.failing_together():
            for _ in range(round(world.rank * seconds / 0.25)):
                time.sleep(0.25)
                if ticks:
                    world.tick()
            if world.rank == fails:
                raise DataError(f"rank {fails} met bad data")
    except (DataError, PeerFailed, TimeoutError, RuntimeError) as error:  # the last: rank 0 left
        return f"{type(error).__name__}: {error}"
    return "met"


def test_a_slow_rank_is_waited_for_as_long_as_it_gets_on() -> None:
    """A share may take longer than the limit of a collective; one image may not."""
    assert run_ranks(2, caught, 5.0, -1) == ["met", "met"]


def test_a_rank_that_does_not_get_on_is_not_waited_for_for_ever() -> None:
    """It hangs, or its node is lost; a restart can mend that, waiting cannot."""
    waiting, _ = run_ranks(2, caught, 5.0, -1, False)
    assert waiting.startswith("TimeoutError: rank 0 waited 2 s (compute.timeout_s)")


def test_bad_data_is_named_however_much_later_the_other_ranks_are_done() -> None:
    """Else the error of the one, which no restart can mend, would look like a lost process."""
    early, late = run_ranks(2, caught, 5.0, 0)
    assert early == "DataError: rank 0 met bad data"
    assert late.startswith("PeerFailed")


def test_bad_data_is_named_where_the_other_rank_does_not_get_on() -> None:
    """The cause, not its consequence."""
    early, _ = run_ranks(2, caught, 5.0, 0, False)
    assert early == "DataError: rank 0 met bad data"
