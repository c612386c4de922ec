"""A real SLURM cluster of virtual nodes for tests, from the optional folder ../shared."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from shared_data import SHARED

_SCRIPT = SHARED / "slurm-cluster" if SHARED else None
_MISSING = [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if not shutil.which(name)]
_REASON = (
    "the optional folder ../shared is absent"
    if _SCRIPT is None
    else "needs root"
    if os.geteuid()
    else f"not installed: {', '.join(_MISSING)}"
    if _MISSING
    else ""
)

T = TypeVar("T")

needs_cluster = pytest.mark.skipif(bool(_REASON), reason=_REASON)


@dataclass(frozen=True)
class Cluster:
    """A running cluster; `environment` is that of a shell on its login node."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, limit_s: float = 120) -> str:
        """What a command prints on the login node; it must succeed."""
        result = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def admin(self, *words: str) -> None:
        """Call the cluster script, e.g. admin("crash", "2")."""
        call_script(self.folder, *words)

    def job(self, job_id: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        words = self.run("scontrol", "show", "job", "--oneliner", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job_id: str, *states: str, limit_s: float = 180) -> dict[str, str]:
        """Until the job is in one of the states (by default: has ended)."""
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        return until(
            lambda: facts if (facts := self.job(job_id))["JobState"] in wanted else None, limit_s
        )


def until(look: Callable[[], T | None], limit_s: float = 60) -> T:
    """What `look` gives once it is not None (or False)."""
    end = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)
    return found


def start_cluster(folder: Path, nodes: int = 4) -> Iterator[Cluster]:
    """A cluster whose whole state is in `folder`; to be used as a fixture."""
    with (Path(tempfile.gettempdir()) / "auxdist-slurm-cluster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # its addresses and ports are the same in every cluster
        call_script(folder, "up", "--nodes", str(nodes), "--cpus", "2")
        try:
            exports = call_script(folder, "env")
            yield Cluster(folder, _shell_environment(exports))
        finally:
            call_script(folder, "down")


def call_script(folder: Path, *words: str) -> str:
    """Call slurm-cluster for the cluster in `folder`."""
    environment = os.environ | {"SLURM_CLUSTER_DIR": str(folder)}
    result = subprocess.run(
        [str(_SCRIPT), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def _shell_environment(exports: str) -> dict[str, str]:
    text = f"{exports}\nenv -0"
    result = subprocess.run(["/bin/bash", "-c", text], capture_output=True, text=True, check=True)
    return dict(entry.split("=", 1) for entry in result.stdout.split("\0") if "=" in entry)
