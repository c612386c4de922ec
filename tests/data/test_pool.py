"""Tasks run once each, are counted, and fail in a clear way (signals: see test_build_script)."""

import pytest
from pool_tasks import count, fail_on_three

from auxdist.data.pool import run_tasks
from auxdist.errors import DataError


@pytest.mark.parametrize("processes", [1, 2])
def test_every_task_runs_once_and_every_sample_is_counted(processes: int) -> None:
    told: list[int] = []
    results = run_tasks(count, list(range(12)), processes, told.append)
    assert sorted(results) == list(range(12))
    assert sum(told) == sum(range(12))


@pytest.mark.parametrize("processes", [1, 2])
def test_error_of_a_task_reaches_the_caller(processes: int) -> None:
    with pytest.raises(DataError, match="three is bad"):
        list(run_tasks(fail_on_three, list(range(12)), processes, lambda done: None))


def test_nothing_to_do_is_done_at_once() -> None:
    assert list(run_tasks(count, [], 4, lambda done: None)) == []
