"""The processes of a run as one value, and the few collectives that the project needs.

The only importer of torch.distributed.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from auxdist.errors import DataError, LaunchError, NodeFault, PeerFailed, Stopped

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """This process among all processes of the run. Made once by `join`, passed down."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: str = "cpu"
    timeout_s: float = 1800.0
    """A collective, and a wait for ranks that do not get on, ends with an error after so long."""

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes what all ranks share."""
        return self.rank == 0

    def all_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise sum of `values` over all ranks; every rank gets it."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """True on every rank when `flag` is true on at least one."""
        return bool(self.all_sum(torch.tensor([float(flag)])).item() > 0)

    def from_main(self, value: int) -> int:
        """The main rank's integer, on every rank."""
        if self.size == 1:
            return value
        box = torch.tensor([value], dtype=torch.int64)
        dist.broadcast(box, src=0)
        return int(box.item())

    def barrier(self) -> None:
        """Return when every rank is here."""
        self.all_sum(torch.zeros(1))

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """A with block whose DataError on one rank is raised on every rank at its end.

        Without it the other ranks would wait for that one until the time limit of a collective.
        """
        problem = None
        try:
            yield
        except DataError as error:
            problem = error
        try:
            self._await_all()
            is_failing = self.any(problem is not None)
        except (RuntimeError, TimeoutError) as error:  # another rank died, or does not get on
            if problem:
                raise problem from (problem.__cause__ or error)
            raise
        if is_failing:
            raise problem or PeerFailed(
                f"rank {self.rank} stops because another rank met bad data; that rank's own "
                "message says which."
            )

    def tick(self) -> None:
        """Tell the ranks that wait at the end of `failing_together` that this one gets on."""
        if self.size > 1:
            _store().add(_PROGRESS, 1)

    def _await_all(self) -> None:
        """Return when every rank is here, however long that takes while any rank ticks.

        A collective limits the time that the slowest rank's whole share may take, this only that
        of one image.

        Raises:
            TimeoutError: no rank ticked for `timeout_s`.
        """
        if self.size == 1:
            return
        store = _store()
        # No rank goes on to the next meeting before all have come to this one.
        all_here = -(-store.add(_ARRIVED, 1) // self.size) * self.size
        progress, deadline, pause = -1, 0.0, 0.001
        while store.add(_ARRIVED, 0) < all_here:
            if (newest := store.add(_PROGRESS, 0)) != progress:
                progress, deadline = newest, time.monotonic() + self.timeout_s
            elif time.monotonic() > deadline:
                raise TimeoutError(
                    f"rank {self.rank} waited {self.timeout_s:.0f} s (compute.timeout_s) for ranks "
                    "that finished nothing in this time"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.2)

    def ticket(self, queue: str) -> int:
        """The next number (0, 1, 2, ...) of `queue`; no two ranks are given the same one.

        Queues live in the run's rendezvous store, so they end with the processes: a name must
        not be used twice within one process group.
        """
        if not dist.is_initialized():
            _lone_queues[queue] = _lone_queues.get(queue, -1) + 1
            return _lone_queues[queue]
        return int(_store().add(f"auxdist/{queue}", 1)) - 1


def _store() -> dist.Store:
    """The key-value store in which the processes of a run met."""
    return dist.distributed_c10d._get_default_store()


_PROGRESS, _ARRIVED = "auxdist/progress", "auxdist/arrived"
"""Counters in the store: of ticks, and of ranks at the ends of `failing_together`."""

_lone_queues: dict[str, int] = {}


def join(device: str = "auto", timeout_s: float = 1800.0) -> World:
    """Join the processes that the launcher started; alone where none did.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. CPU tensors travel by gloo,
    CUDA tensors by NCCL.

    Raises:
        LaunchError: some of the variables are set and others are not.
    """
    present = [name for name in _ENVIRONMENT if name in os.environ]
    if not present:
        return World(device=_pick_device(device, 0), timeout_s=timeout_s)
    if missing := sorted(set(_ENVIRONMENT) - set(present)):
        raise LaunchError(
            f"environment: {', '.join(present)} set but {', '.join(missing)} missing; start the "
            "processes with launch/local.py, launch/slurm.py or torchrun, or unset all of them."
        )
    rank, size, local_rank = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    place = _pick_device(device, local_rank)
    if place.startswith("cuda"):
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if place.startswith("cuda") else "gloo"
    dist.init_process_group(
        backend, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
    )
    return World(rank, size, local_rank, place, timeout_s)


def leave() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def joined(device: str = "auto", timeout_s: float = 1800.0) -> Iterator[World]:
    """`join` for the length of a with block.

    The group is left in order at its end and when all ranks stop. After any other error it is not:
    the other ranks may be dead, and leaving could wait for them.
    """
    world = join(device, timeout_s)
    try:
        yield world
    except Stopped:
        leave()
        raise
    leave()


def _pick_device(wanted: str, local_rank: int) -> str:
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise NodeFault(
            f"{platform.node()}: torch sees no GPU, but compute.device is cuda or SLURM gave GPUs; "
            "look at the driver, or use compute.device cpu."
        )
    # fp32 means fp32, whatever the environment says; who wants speed takes bf16.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return f"cuda:{local_rank % torch.cuda.device_count()}" if wanted == "cuda" else wanted
