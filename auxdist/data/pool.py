"""Run tasks on several processes such that every ending is a clear one.

A task that fails stops the others; a process that is killed is noticed; Ctrl-C and SIGTERM end the
work after the sample in hand; workers do not outlive their parent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, TypeVar

import cv2

from auxdist.errors import DataError, Stopped

Task = TypeVar("Task")
Result = TypeVar("Result")
Tick = Callable[[], None]
"""Called by a task before each sample: counts it, and raises Stopped once the work is to end."""

_POLL_S = 0.1
_TASKS_PER_PROCESS = 2

_board: MutableSequence[int] = []
"""In a worker: [stop flag, samples done in slot 0, in slot 1, ..]. Shared memory without a lock,
which a killed process could never hand back."""


def run_tasks(
    function: Callable[[Task, Tick], Result],
    tasks: Sequence[Task],
    processes: int,
    report: Callable[[int], object],
    preload: Sequence[str] = (),
) -> Iterator[Result]:
    """Yield `function(task, tick)` of every task as they finish, in any order.

    `report` is told now and then how many samples were begun since it was last told. `function` and
    the tasks must be importable from another process. `preload` names modules that are slow to
    import and that the workers will need. With one process or one task it runs here.

    Raises:
        Stopped: the user or the system asked to stop.
        DataError: a worker process was killed; also whatever a task raises.
    """
    processes = min(processes, len(tasks))
    with _stop_requests() as stop:
        if processes <= 1:
            yield from _run_here(function, tasks, stop, report)
        else:
            with _workers(processes, [function.__module__, *preload]) as workers:
                yield from _run_pooled(workers, function, tasks, stop, report)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set. A second signal acts as it always does."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {int(n): signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped() -> Stopped:
    return Stopped("Asked to stop: what is finished is kept, and the same command goes on from it.")


def _run_here(
    function: Callable[[Task, Tick], Result],
    tasks: Sequence[Task],
    stop: threading.Event,
    report: Callable[[int], object],
) -> Iterator[Result]:
    def tick() -> None:
        if stop.is_set():
            raise _stopped()
        report(1)

    for task in tasks:
        yield function(task, tick)


@dataclass(frozen=True)
class _Workers:
    """A pool, and the board that it shares with this process: see `_board`."""

    executor: ProcessPoolExecutor
    board: Any


@contextmanager
def _workers(processes: int, preload: list[str]) -> Iterator[_Workers]:
    """Worker processes that are told to end, and waited for, when the block ends."""
    # A server that has imported all that is slow forks the workers: no import in each of them,
    # and unlike a plain fork no copies of the parent's threads and locks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    board = context.RawArray("q", 1 + processes * _TASKS_PER_PROCESS)
    executor = ProcessPoolExecutor(processes, context, _start_worker, (board,))
    try:
        yield _Workers(executor, board)
    except BrokenProcessPool as error:
        raise DataError(
            "A worker process died: killed by somebody, or for want of memory (then take fewer "
            "--processes). What is finished is kept, and the same command goes on from it."
        ) from error
    finally:
        board[0] = 1
        executor.shutdown(wait=True, cancel_futures=True)


def _run_pooled(
    workers: _Workers,
    function: Callable[[Task, Tick], Result],
    tasks: Sequence[Task],
    stop: threading.Event,
    report: Callable[[int], object],
) -> Iterator[Result]:
    """Keep a few tasks in flight, each with a slot of the board, until all are done."""
    board = workers.board
    waiting = iter(tasks)
    slots = list(range(1, len(board)))
    running: dict[Future[Result], int] = {}
    seen = [0] * len(board)
    while True:
        while slots and (task := next(waiting, None)) is not None:
            slot = slots.pop()
            board[slot] = seen[slot] = 0
            running[workers.executor.submit(_run_task, function, task, slot)] = slot
        if not running:
            return
        finished, _ = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        counts = list(board)
        report(sum(counts[1:]) - sum(seen[1:]))
        seen = counts
        if stop.is_set():
            raise _stopped()
        for future in finished:
            slots.append(running.pop(future))
            yield future.result()


def _start_worker(board: Any) -> None:
    """Prepare a worker: the terminal's Ctrl-C is the parent's matter; die with the parent."""
    global _board  # noqa: PLW0603 - the initialiser of a pool has nowhere else to leave a value
    _board = board
    cv2.setNumThreads(1)  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _run_task(function: Callable[[Task, Tick], Result], task: Task, slot: int) -> Result:
    def tick() -> None:
        if _board[0]:
            raise _stopped()
        _board[slot] += 1

    return function(task, tick)
