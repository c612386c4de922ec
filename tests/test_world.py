"""Joining the processes of a run: what is refused, and with which words."""

from __future__ import annotations

import pytest
import torch

from auxdist import world
from auxdist.errors import LaunchError

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
    with pytest.raises(LaunchError, match=r"torch sees no GPU here; use cpu or auto"):
        world.join("cuda")
