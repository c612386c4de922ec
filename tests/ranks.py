"""Run a function on several real processes that form one World."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_ranks(
    size: int,
    function: Callable[..., Any],
    *arguments: Any,
    timeout_s: float = 300,
) -> list[Any]:
    """Call `function(world, *arguments)` on `size` gloo ranks, one thread each; results by rank.

    `function` must be importable (a module-level function of a test file).
    """
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    port = free_port()
    processes = [
        context.Process(
            target=_rank,
            args=(results, rank, size, port, function, arguments),
            daemon=True,
        )
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        collected: dict[int, Any] = {}
        for _ in range(size):
            rank, good, value = results.get(timeout=timeout_s)
            if not good:
                raise AssertionError(f"rank {rank} of {size} failed:\n{value}")
            collected[rank] = value
        return [collected[rank] for rank in range(size)]
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()


def _rank(
    results: Any,
    rank: int,
    size: int,
    port: int,
    function: Callable[..., Any],
    arguments: Any,
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import torch

    from auxdist import world as world_module

    torch.set_num_threads(1)
    try:
        world = world_module.join("cpu", timeout_s=120)
        results.put((rank, True, function(world, *arguments)))
        world_module.leave()
    except BaseException:
        results.put((rank, False, traceback.format_exc()))
