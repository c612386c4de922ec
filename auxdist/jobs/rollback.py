"""Going back to earlier labels: what came of them is set aside, and the run goes on from there.

Disk is the truth, so there is no record of a rollback under way. Things are moved from the newest
to the oldest, each by one rename, and a run without its newest things is simply a run that has
not come that far: after a death at any moment the same call goes on setting aside, and a start of
the run would go on from the last thing that is left.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from auxdist.errors import DataError
from auxdist.jobs.submit import only_launcher, require_not_queued
from auxdist.labels.manifest import read_manifest
from auxdist.labels.store import retract_latest
from auxdist.observe.events import EventLog
from auxdist.records import Position
from auxdist.runfolder import RunFolder, rounds_in, sync_folder
from auxdist.train.guard import Fence


def roll_back(run: RunFolder, round: int) -> Path | None:
    """Make the run go on from the labels of `round`; the folder with what came after them.

    That are later labels, the checkpoints of this round and later ones, and what was measured of
    both. None where there was nothing of it.

    Raises:
        DataError: the labels of that round are not finished, or something cannot be moved.
        LaunchError: the run is going on or queued.
    """
    read_manifest(run.labels(round))
    with only_launcher(run):
        require_not_queued(run)
        if not any(_later(run, round)):
            return None
        Fence.raise_new(run)  # a process that its cluster lost sight of must not go on writing
        folder = _dated_folder(run)
        for path in _later(run, round):
            _move(path, folder / path.relative_to(run.root))
            if path.parent == run.labels(0).parent:
                retract_latest(run, max(rounds_in(path.parent)))
        with EventLog(run, 0) as events:
            events.write("rollback", round=round, folder=str(folder))
    return folder


def _later(run: RunFolder, round: int) -> Iterator[Path]:
    """What there is after the labels of `round`, the newest first."""
    ends = (run.complete, run.failure, run.report, run.examples, run.tensorboard)
    yield from (path for path in ends if path.exists())
    for later in reversed(range(round, _last_round(run) + 1)):
        yield from run.evaluations("labels", later + 1)
        yield from (path for path in [run.labels(later + 1)] if path.exists())
        yield from run.evaluations("val", later)
        checkpoints = run.checkpoints(Position(later, 0).stage)
        yield from (path for path in [checkpoints] if path.exists())


def _last_round(run: RunFolder) -> int:
    """The last round of which there may be anything; -1 where there is none."""
    folders = (run.labels(0).parent, run.checkpoints("").parent)
    return max((round for folder in folders for round in rounds_in(folder)), default=-1)


def _dated_folder(run: RunFolder) -> Path:
    """A new folder to set things aside in."""
    name, number = time.strftime("%Y-%m-%d-%H%M%S"), 1
    folder = run.set_aside / name
    while folder.exists():
        number += 1
        folder = run.set_aside / f"{name}-{number}"
    folder.mkdir(parents=True)
    return folder


def _move(path: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, target)
        sync_folder(target.parent)
        sync_folder(path.parent)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be moved to {target} ({error.strerror}); mend the file system, then "
            "give the same command again: what was moved already stays there."
        ) from error
