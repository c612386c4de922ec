"""What ends a training early, in order: a wish to stop, or a start of the same run elsewhere."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import FrameType

from auxdist.errors import Stopped
from auxdist.runfolder import RunFolder, write_text

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopFlag:
    """Set by a signal, read at step boundaries. The handler does nothing else."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def is_set(self) -> bool:
        """True once a stop was asked for."""
        return self.signal is not None

    def install(self) -> StopFlag:
        """Take over the stop signals of this process (main thread only)."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number


@dataclass(frozen=True)
class Fence:
    """Keeps a process of an earlier start, which its cluster lost sight of, from writing.

    Every rank of a start holds one.
    """

    run: RunFolder
    incarnation: int

    @classmethod
    def raise_new(cls, run: RunFolder) -> Fence:
        """Begin a new incarnation of the run; every earlier one is fenced off from now on."""
        incarnation = current_incarnation(run) + 1
        write_text(run.incarnation, f"{incarnation}\n")
        return cls(run, incarnation)

    @property
    def is_newest(self) -> bool:
        """False once a later start of the run has begun."""
        # Another node may see an older number for a while, but none that is yet to come.
        return current_incarnation(self.run) <= self.incarnation

    def check(self) -> None:
        """Return if this is still the newest start of the run.

        Raises:
            Stopped: the run was started again meanwhile.
        """
        if not self.is_newest:
            raise Stopped(
                f"{self.run.root}: this is start {self.incarnation} of the run, but a later one "
                "has begun meanwhile; nothing more is written from here."
            )


def current_incarnation(run: RunFolder) -> int:
    """How often the run was started so far."""
    return int(run.incarnation.read_text()) if run.incarnation.exists() else 0
