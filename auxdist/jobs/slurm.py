"""What a process can learn from SLURM and ask of it, while inside a job or beside one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable
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
_OTHER_NAMES = {"time": "TIMELIMIT", "mem": "MEM_PER_NODE", "requeue": "NO_REQUEUE"}
"""Options whose variable is not called as they are."""
_OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
_OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
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
        """Queue this job again if it runs. True where SLURM did.

        Not when it was cancelled, or when what runs is a later start, on other nodes.

        Raises:
            LaunchError: SLURM refused.
        """
        shown = _shown(self.job_id, limit_s=20)
        is_newest = int(_word(shown, "Restarts") or 0) <= self.restart
        if _word(shown, "JobState") != "RUNNING" or not is_newest:
            return False
        result = _scontrol("requeue", self.job_id, limit_s=20)  # the batch script asks longer
        if result.returncode:
            raise LaunchError(
                f"SLURM refused to queue job {self.job_id} again ({result.stderr.strip()}); "
                "everything is saved. The batch script asks again; in the end the launch command "
                "goes on too."
            )
        return True


def current_allocation() -> Allocation | None:
    """The SLURM job around this process, if submitit started it there."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return None
    return Allocation(os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0")))


def misleading_variables(names: Iterable[str], batch_text: str) -> list[str]:
    """Those of the environment's `names` that would make another job of a batch file.

    sbatch takes SBATCH_* for more than the options in the file, and hands the new job what SLURM
    told the job that it is called in.
    """
    stated = re.findall(r"^#SBATCH --([a-z-]+)", batch_text, re.MULTILINE)
    options = {_OTHER_NAMES.get(name, name.upper().replace("-", "_")) for name in stated}
    overriding = {f"SBATCH_{name}" for name in (*options, "ARRAY_INX")}
    names = list(names)
    found = [name for name in names if name in overriding]
    if "SLURM_JOB_ID" in names:
        found += [n for n in names if n.startswith(_OF_A_JOB) and n not in _OF_THE_CLUSTER]
    return found


def wait_to_be_killed(limit_s: float = 600) -> None:
    """Sleep until SLURM ends this process; an exit of our own would look like a lost process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(limit_s)


def job_state(job_id: str) -> str | None:
    """SLURM's word for a job's state, e.g. "RUNNING"; None where it knows no such job.

    Raises:
        LaunchError: there is no scontrol here, or it or its controller does not answer.
    """
    return _word(_shown(job_id), "JobState")


def _shown(job_id: str, limit_s: float = 60) -> str:
    """What SLURM tells of a job; empty where it knows no such job."""
    result = _scontrol("show", "job", "--oneliner", job_id, limit_s=limit_s)
    if _word(result.stdout, "JobState"):
        return result.stdout
    if "Invalid job id" in result.stderr:
        return ""
    raise LaunchError(
        f"scontrol: does not say how job {job_id} is ({result.stderr.strip()}); try again."
    )


def _scontrol(*words: str, limit_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = ["scontrol", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(
            f"scontrol: cannot be asked about job {words[-1]} ({error}); ask again, on a node of "
            "the cluster."
        ) from error


def _word(shown: str, field: str) -> str | None:
    found = re.search(rf"\b{field}=(\S+)", shown)
    return found.group(1) if found else None


def is_unfinished(state: str | None) -> bool:
    """Whether a job of this state may still write: it waits, runs, or is being ended."""
    return state is not None and state not in _ENDED
