"""What a run is doing, from its folder and, where there is one, from SLURM."""

from __future__ import annotations

import fcntl
import time
from dataclasses import dataclass
from typing import Any

from auxdist.config import Config
from auxdist.configfile import load_config
from auxdist.errors import LaunchError
from auxdist.evaluate.tables import rounds_table
from auxdist.jobs.slurm import is_unfinished, job_state
from auxdist.jobs.submit import last_job
from auxdist.observe.events import describe, read_events
from auxdist.runfolder import RunFolder, read_failure

_RUNNING = ("RUNNING", "COMPLETING")


@dataclass(frozen=True)
class Status:
    """`state` is one of complete, failed, running, queued, not running; `detail` says more."""

    state: str
    detail: str
    last_event: str
    table: str

    def text(self) -> str:
        """For a terminal."""
        lines = [f"state  {self.state}{': ' * bool(self.detail)}{self.detail}"]
        lines += [f"last   {self.last_event}"] * bool(self.last_event)
        return "\n".join([*lines, "", self.table])


def status_of(run: RunFolder) -> Status:
    """The status of a run.

    Raises:
        ConfigError: the folder holds no run.
    """
    config = load_config(run.config)
    state, detail = _state(run, config)
    return Status(state, detail, _last_event(run), rounds_table(run, config))


def _state(run: RunFolder, config: Config) -> tuple[str, str]:
    if run.complete.exists():
        return "complete", f"report {run.report}"
    if _is_running_here(run):
        return "running", "on this machine, by launch/local.py"
    job = last_job(run)
    job_now = _job_state(job) if job else None
    if is_unfinished(job_now):
        return ("running" if job_now in _RUNNING else "queued"), f"job {job} is {job_now}"
    if failure := read_failure(run):
        return "failed", f"{failure['message']} (rank {failure['rank']})"
    ended = f"job {job} is {job_now}, see {run.job_log(job)}; " if job and job_now else ""
    return "not running", f"{ended}the command that started {config.name} goes on"


def _job_state(job: str) -> str | None:
    try:
        return job_state(job)
    except LaunchError:  # looked at from a host without SLURM
        return None


def _is_running_here(run: RunFolder) -> bool:
    """True while launch/local.py holds the lock of the run."""
    if not run.lock.exists():
        return False
    with run.lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no locks on this file system, so nothing could start
            return False
    return False


def _last_event(run: RunFolder) -> str:
    last: dict[str, Any] | None = None
    for record in read_events(run):
        if describe(record):
            last = record
    if last is None:
        return ""
    age = max(0, time.time() - last["time"])
    return f"{describe(last).strip()}  ({_duration(age)} ago)"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
