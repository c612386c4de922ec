"""Signals only set a flag; a process of an earlier start may not write."""

import os
import signal
from pathlib import Path

import pytest

from auxdist.errors import Stopped
from auxdist.runfolder import RunFolder
from auxdist.train.guard import STOP_SIGNALS, Fence, StopFlag


@pytest.fixture
def _handlers_restored() -> object:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers_restored")
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_only_sets_the_flag(number: signal.Signals) -> None:
    stop = StopFlag().install()
    assert not stop.is_set
    os.kill(os.getpid(), number)
    assert stop.is_set
    assert stop.signal == number


def test_an_earlier_start_is_fenced_off(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first = Fence.raise_new(run)
    first.check()
    second = Fence.raise_new(run)
    second.check()
    with pytest.raises(Stopped, match="start 1 of the run, but a later one has begun"):
        first.check()
