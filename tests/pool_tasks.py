"""Tasks for tests of the process pool; workers import them by name."""

from collections.abc import Callable

from auxdist.errors import DataError


def count(task: int, tick: Callable[[], None]) -> int:
    """Tick `task` times."""
    for _ in range(task):
        tick()
    return task


def fail_on_three(task: int, tick: Callable[[], None]) -> int:
    """Fail on task 3."""
    tick()
    if task == 3:
        raise DataError("three is bad")
    return task
