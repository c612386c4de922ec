"""The sbatch text, pinned as text: no SLURM is needed to know what would be submitted."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from auxdist.config import Config, LaunchConfig
from auxdist.jobs.spec import JobExecutor, LaunchSpec, launch_spec
from auxdist.runfolder import RunFolder

RUN = RunFolder(Path("/data/my runs/coco"))
CODE = Path("/home/me/auxdist")
GOLDEN = Path(__file__).parent / "golden"


def spec(**launch: object) -> LaunchSpec:
    config = Config(name="coco", launch=LaunchConfig(**launch))  # type: ignore[arg-type]
    return launch_spec(config, RUN, CODE)


def text(wanted: LaunchSpec) -> str:
    executor = JobExecutor(wanted, RUN.launch)
    executor.python = "/home/me/auxdist/.venv/bin/python"
    return executor.batch_text() + "\n"


@pytest.mark.parametrize(
    ("name", "launch"),
    [
        (
            "gpus",
            {
                "nodes": 4,
                "gpus_per_node": 8,
                "cpus_per_proc": 12,
                "memory_gb_per_node": 900,
                "partition": "a100",
                "account": "vision",
                "time_min": 600,
                "setup": ("module load cuda/12.4", "export NCCL_DEBUG=WARN"),
                "extra": {"constraint": "ib & a100", "comment": "it's mine; rm -rf /"},
            },
        ),
        ("cpus", {"nodes": 2, "procs_per_node": 3, "max_restarts": 0}),
    ],
)
def test_batch_file_is_as_pinned(name: str, launch: dict[str, object]) -> None:
    assert text(spec(**launch)) == (GOLDEN / f"{name}.sbatch").read_text()


def test_one_task_per_gpu_or_per_cpu_slot() -> None:
    assert spec(nodes=4, gpus_per_node=8).tasks_per_node == 8
    assert spec(nodes=4, procs_per_node=3).tasks_per_node == 3


def test_user_text_stays_one_argument() -> None:
    hostile = replace(spec(), name="a b; touch x", partition="p q", extra={"comment": "$(x)"})
    lines = text(hostile).splitlines()
    assert "#SBATCH --job-name='a b; touch x'" in lines
    assert "#SBATCH --partition='p q'" in lines
    assert "#SBATCH --comment='$(x)'" in lines


@pytest.fixture
def batch(tmp_path: Path) -> "Batch":
    return Batch(tmp_path)


class Batch:
    """Runs a batch file by bash, with srun and scontrol replaced by scripts that only note."""

    def __init__(self, folder: Path) -> None:
        self.run = RunFolder(folder / "it's a run")
        self.run.launch.mkdir(parents=True)
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.log = folder / "scontrol.log"
        self.script("sleep", "exit 0")
        self.controller_shows("exit 1")

    def script(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def controller_shows(self, shown: str, refusals: int = 0) -> None:
        """Let scontrol do this to show the job; all else is noted, and done at last."""
        asked = f'echo "$@" >> "{self.log}"; [ $(wc -l < "{self.log}") -gt {refusals} ]'
        self.script("scontrol", f'if [ "$1" = show ]; then {shown}; else {asked}; fi')

    def __call__(self, srun_exit: int, restart: int = 0, setup: str = "") -> int:
        self.script("srun", f'echo "$SLURM_EXPORT_ENV" >> "{self.log}.export"; exit {srun_exit}')
        launch = LaunchConfig(max_restarts=2, setup=(setup,))
        wanted = launch_spec(Config(launch=launch), self.run, CODE)
        file = self.run.launch / "job.sbatch"
        file.write_text(JobExecutor(wanted, self.run.launch).batch_text())
        environment = {"PATH": f"{self.bin}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
        if restart:
            environment["SLURM_RESTART_COUNT"] = str(restart)
        return subprocess.run(["/bin/bash", file], env=environment, check=False).returncode

    @property
    def requeues(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


def test_a_lost_process_queues_the_job_again_so_often(batch: Batch) -> None:
    for restart, expected in enumerate([1, 2, 2]):
        assert batch(srun_exit=137, restart=restart) == 137
        assert batch.requeues == expected
    assert batch.log.read_text().splitlines()[0] == "requeue 7"


def test_strict_setup_lines_do_not_switch_restarts_off(batch: Batch) -> None:
    assert batch(srun_exit=137, setup="set -euo pipefail") == 137
    assert batch.requeues == 1


def test_the_tasks_get_the_variables_of_the_batch_script_wherever_export_is_none(
    batch: Batch,
) -> None:
    batch(srun_exit=0, setup="export SLURM_EXPORT_ENV=NONE")  # what sbatch --export=NONE does
    assert Path(f"{batch.log}.export").read_text() == "ALL\n"


def test_a_controller_that_does_not_answer_is_asked_again(batch: Batch) -> None:
    batch.controller_shows("exit 1", refusals=2)
    batch(srun_exit=137)
    assert batch.requeues == 3
    batch.controller_shows("exit 1", refusals=100)
    assert batch(srun_exit=137) == 137
    assert batch.requeues == 3 + 4


def test_preemptions_do_not_use_up_the_restarts(batch: Batch) -> None:
    batch(srun_exit=137, restart=9)
    assert batch.requeues == 1


def test_a_finished_job_is_not_queued_again(batch: Batch) -> None:
    assert batch(srun_exit=0) == 0
    assert batch.requeues == 0


def test_a_job_that_failed_for_good_is_not_queued_again(batch: Batch) -> None:
    batch.run.failure.write_text("{}")
    assert batch(srun_exit=2) == 2
    assert batch.requeues == 0


def test_a_start_that_was_lost_does_not_end_the_one_after_it(batch: Batch) -> None:
    """SLURM gave the job other nodes, and then its old ones came back to the network."""
    batch.controller_shows("echo JobId=7 Requeue=1 Restarts=1 BatchFlag=1")
    batch(srun_exit=1)
    assert batch.requeues == 0
    batch(srun_exit=1, restart=1)
    assert batch.requeues == 1


def test_a_job_superseded_by_a_newer_start_is_not_queued_again(batch: Batch) -> None:
    (batch.run.launch / "7.0.superseded").touch()
    assert batch(srun_exit=1) == 1
    assert batch.requeues == 0
    batch(srun_exit=1, restart=1)
    assert batch.requeues == 1


def test_a_restart_removes_old_results_of_this_job_only(batch: Batch) -> None:
    for name in ("7_0_result.pkl", "8_0_result.pkl"):
        (batch.run.launch / name).touch()
    batch(srun_exit=0)
    assert [path.name for path in batch.run.launch.glob("*.pkl")] == ["8_0_result.pkl"]


def test_a_flag_without_a_value() -> None:
    assert "#SBATCH --exclusive\n" in text(spec(extra={"exclusive": ""}))
