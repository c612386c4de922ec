"""What SLURM is asked for: a configuration turned into a LaunchSpec, and that into sbatch text.

Nothing here runs a command or needs SLURM; the text is made by submitit itself.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor

from auxdist.config import Config
from auxdist.runfolder import RunFolder


@dataclass(frozen=True)
class LaunchSpec:
    """One SLURM job: what it asks for, and the shell lines around it."""

    name: str
    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    memory_gb: int
    partition: str | None
    account: str | None
    time_min: int
    signal_delay_s: int
    setup: tuple[str, ...]
    teardown: tuple[str, ...]
    extra: dict[str, str]

    def parameters(self) -> dict[str, Any]:
        """The job in submitit's words."""
        wanted = {
            "job_name": self.name,
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks_per_node,
            "gpus_per_node": self.gpus_per_node or None,
            "cpus_per_task": self.cpus_per_task,
            "mem": f"{self.memory_gb}GB" if self.memory_gb else None,
            "partition": self.partition,
            "account": self.account,
            "time": self.time_min,
            "signal_delay_s": self.signal_delay_s,
            "wckey": None,
            "setup": list(self.setup),
            "teardown": list(self.teardown),
            # Without it the other processes wait for a dead one until their collectives time out.
            "srun_args": ["--kill-on-bad-exit=1"],
            # Of a flag without a value submitit makes --flag where it is True.
            "additional_parameters": {"requeue": True}
            | {key: value or True for key, value in self.extra.items()},
        }
        return {k: v for k, v in wanted.items() if v is not None or k == "wckey"}


def launch_spec(config: Config, run: RunFolder, code: Path) -> LaunchSpec:
    """The job of a run; `code` is the folder that holds the auxdist package."""
    launch = config.launch
    return LaunchSpec(
        name=config.name,
        nodes=launch.nodes,
        tasks_per_node=launch.procs_on_node,
        gpus_per_node=launch.gpus_per_node,
        cpus_per_task=launch.cpus_per_proc,
        memory_gb=launch.memory_gb_per_node,
        partition=launch.partition,
        account=launch.account,
        time_min=launch.time_min,
        signal_delay_s=launch.signal_delay_s,
        setup=(*launch.setup, *_setup(run, code)),
        teardown=tuple(_teardown(run, launch.max_restarts)),
        extra=launch.extra,
    )


class JobExecutor(SlurmExecutor):
    """submitit's executor for one job; it makes the batch file on hosts without SLURM too."""

    def __init__(self, spec: LaunchSpec, folder: Path) -> None:
        super().__init__(folder=folder)
        self.update_parameters(**spec.parameters())

    @classmethod
    def affinity(cls) -> int:
        """SLURM is never missing for the making of text; `submit` checks for sbatch."""
        return 2

    def batch_text(self) -> str:
        """The batch file that would be handed to sbatch."""
        return str(self._make_submission_file_text(self._submitit_command_str, uid=""))


def _setup(run: RunFolder, code: Path) -> list[str]:
    results = f"{shlex.quote(str(run.launch))}/${{SLURM_JOB_ID}}_*_result.pkl"
    return [
        "set +e",  # setup lines of the user's may have set it, and the teardown is to be reached
        # A site's or a user's --export=NONE would keep the lines below from the tasks.
        "export SLURM_EXPORT_ENV=ALL",
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        # srun does not take --cpus-per-task from sbatch since SLURM 22.05.
        "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}",
        # The batch script runs again after a restart; submitit would take old results for new.
        f"rm -f {results}",
    ]


def _teardown(run: RunFolder, max_restarts: int) -> list[str]:
    """SLURM itself never queues a job again that lost a process, only one that lost a node."""
    launch = shlex.quote(str(run.launch))
    look = shlex.quote(str(run.root / ".look"))
    return [
        "rc=$?",
        # A network file system may believe for a minute that a file is not there which another
        # node wrote; a change of the folder makes it look.
        f"touch {look}; rm -f {look}",
        f'restarts={launch}/"${{SLURM_JOB_ID}}.restarts"',
        f'superseded={launch}/"${{SLURM_JOB_ID}}.${{SLURM_RESTART_COUNT:-0}}.superseded"',
        'count=$(cat "$restarts" 2>/dev/null | wc -c)',
        # After a node was lost and came back, what runs may be a later start, on other nodes.
        'newest=$(scontrol show job --oneliner "$SLURM_JOB_ID" | '
        "sed -n 's/.*\\bRestarts=\\([0-9]*\\).*/\\1/p')",
        f"if [ $rc -ne 0 ] && [ ! -e {shlex.quote(str(run.failure))} ] "
        f'&& [ ! -e "$superseded" ] && [ "$count" -lt {max_restarts} ] '
        '&& [ "${newest:-0}" -le "${SLURM_RESTART_COUNT:-0}" ]; then',
        f'  echo "auxdist: a process was lost (exit code $rc); '
        f'restart $((count + 1)) of {max_restarts}" >&2',
        '  printf x >> "$restarts"',
        # A busy controller may not answer at once, least of all while many jobs are preempted.
        "  for pause in 10 30 60 0; do",
        '    if scontrol requeue "$SLURM_JOB_ID"; then sleep 600; break; fi',
        "    sleep $pause",
        "  done",
        "fi",
        "exit $rc",
    ]
