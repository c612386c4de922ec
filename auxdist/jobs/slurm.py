"""What a process can learn from SLURM and ask of it, while inside a job or beside one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass

from auxdist.errors import LaunchError

_ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "DEADLINE",
    "BOOT_FAIL",
    "PREEMPTED",
    "REVOKED",
)
_FIRST_PORT, _NUM_PORTS = 12000, 8000
"""Below the ports that Linux gives away by itself (from 32768)."""


@dataclass(frozen=True)
class Allocation:
    """The SLURM job that this process is a task of."""

    job_id: str
    restart: int
    """How often SLURM has started the job again."""

    def export_ranks(self) -> None:
        """Set the variables that `world.join` reads, from those of SLURM."""
        from submitit.helpers import TorchDistributedEnvironment

        # Another port after a restart: a process of the start before may still hold the old one.
        port = _FIRST_PORT + (31 * int(self.job_id) + self.restart) % _NUM_PORTS
        os.environ["MASTER_PORT"] = str(port)
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)

    def requeue(self) -> bool:
        """Queue this job again if it runs; not when it was cancelled. True where SLURM did.

        Raises:
            LaunchError: SLURM refused.
        """
        if job_state(self.job_id) != "RUNNING":
            return False
        command = ["scontrol", "requeue", self.job_id]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise LaunchError(
                f"SLURM refused to queue job {self.job_id} again ({result.stderr.strip()}); "
                "everything is saved, give the launch command again."
            )
        return True


def current_allocation() -> Allocation | None:
    """The SLURM job around this process, if submitit started it there."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return None
    return Allocation(os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0")))


def wait_to_be_killed(limit_s: float = 600) -> None:
    """Sleep until SLURM ends this process; an exit of our own would look like a lost process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(limit_s)


def job_state(job_id: str) -> str | None:
    """SLURM's word for a job's state, e.g. "RUNNING"; None where it knows no such job.

    Raises:
        LaunchError: there is no scontrol here, or it or its controller does not answer.
    """
    command = ["scontrol", "show", "job", "--oneliner", job_id]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(
            f"scontrol: cannot be asked about job {job_id} ({error}); ask on a node of the cluster."
        ) from error
    if found := re.search(r"\bJobState=(\S+)", result.stdout):
        return found.group(1)
    if "Invalid job id" in result.stderr:
        return None
    raise LaunchError(
        f"scontrol: does not say how job {job_id} is ({result.stderr.strip()}); try again."
    )


def is_unfinished(state: str | None) -> bool:
    """Whether a job of this state may still write: it waits, runs, or is being ended."""
    return state is not None and state not in _ENDED
