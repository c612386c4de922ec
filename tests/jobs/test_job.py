"""The job: fenced, stopped in order, failing for good only where a person is needed."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Literal

import pytest
import torch
from submitit.core.utils import DelayedSubmission

from auxdist.config import ComputeConfig, Config, LaunchConfig
from auxdist.configfile import dump_config
from auxdist.errors import DataError, DiskFull, LaunchError, NodeFault, Stopped
from auxdist.jobs import job
from auxdist.jobs.job import (
    EXIT_ERROR,
    EXIT_STOPPED,
    Job,
    num_threads,
    record_failure,
    require_own_gpu,
    wanted_device,
)
from auxdist.jobs.local import Outcome, run_processes
from auxdist.jobs.slurm import Allocation
from auxdist.runfolder import RunFolder, write_json, write_text
from auxdist.train.guard import Fence, current_incarnation
from auxdist.world import World

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def make_run(root: Path, **plan: object) -> RunFolder:
    run = RunFolder(root)
    config = Config(compute=ComputeConfig(device="cpu", threads_per_rank=1))
    write_text(run.config, dump_config(config))
    write_json(run.root / "plan.json", {"steps": 3, "step_s": 0.0, **plan})
    return run


def count(run: RunFolder, procs: int = 2) -> Outcome:
    command = [sys.executable, "-m", "counting_job", str(run.root)]
    return run_processes(command, procs, ENVIRONMENT, grace_s=3)


def test_a_job_carries_one_string_and_is_sent_by_name(tmp_path: Path) -> None:
    DelayedSubmission(Job("/data/run")).dump(tmp_path / "sent")
    content = (tmp_path / "sent").read_bytes()
    assert b"auxdist.jobs.job" in content
    assert b"/data/run" in content
    assert len(content) < 400


def test_a_finished_run_is_marked_and_reported(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert count(run) == Outcome(0)
    assert run.complete.exists()
    assert run.report.exists()
    assert current_incarnation(run) == 1
    starts = (run.root / "starts").read_text().splitlines()
    assert sorted(starts) == ["0 of 2 at 0", "1 of 2 at 0"]


def test_a_stop_saves_and_the_same_command_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, steps=400, step_s=0.02)
    stopper = threading.Thread(target=stop_rank, args=(run, 1))
    stopper.start()
    outcome = count(run)
    stopper.join()
    assert outcome.code == 75
    stopped_at = json.loads((run.root / "state.json").read_text())["step"]
    assert 0 < stopped_at < 400
    assert capfd.readouterr().out == f"saved at step {stopped_at}.\n"
    assert not run.complete.exists()
    write_json(run.root / "plan.json", {"steps": stopped_at + 2, "step_s": 0.0})
    assert count(run).code == 0
    assert f"0 of 2 at {stopped_at}" in (run.root / "starts").read_text()
    assert current_incarnation(run) == 2


def stop_rank(run: RunFolder, rank: int) -> None:
    """Ask one rank to stop, once both count."""
    while not (run.root / "state.json").exists():
        time.sleep(0.02)
    pid = json.loads((run.root / f"rank-{rank}.json").read_text())["pid"]
    os.kill(pid, signal.SIGTERM)


def test_an_error_of_one_rank_is_said_once_and_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, fail=[1, 1])
    outcome = count(run)
    assert outcome.code == EXIT_ERROR
    error = capfd.readouterr().err
    assert error.count("sample x: is damaged; build the shards anew.") == 1
    failure = json.loads(run.failure.read_text())
    assert failure["error"] == "DataError"
    assert failure["rank"] == 1
    write_json(run.root / "plan.json", {"steps": 3, "step_s": 0.0})
    assert count(run).code == 0
    assert not run.failure.exists()


def test_a_killed_rank_is_no_failure_for_good(tmp_path: Path) -> None:
    run = make_run(tmp_path, die=[1, 1])
    assert "Rank 1 was killed by SIGKILL" in count(run).message
    assert not run.failure.exists()
    assert count(run).code == 0


def test_an_error_that_nobody_foresaw_is_shown_and_ends_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, **{"break": [1, 1]})
    assert count(run).code == 1
    assert "RuntimeError: not foreseen" in capfd.readouterr().err
    assert not run.failure.exists()
    write_json(run.root / "plan.json", {"steps": 3, "step_s": 0.0})
    assert count(run).code == 0


@pytest.mark.parametrize("is_allocated", [False, True])
@pytest.mark.parametrize(
    ("cause", "passes"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (NodeFault("torch sees no GPU here"), True),
        (None, False),
    ],
)
def test_what_may_be_gone_at_the_next_start_does_not_end_a_job_of_slurm_for_good(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cause: Exception | None,
    passes: bool,
    is_allocated: bool,
) -> None:
    """Its batch script queues a job again that left no failure.json."""

    def fail(self: Job, run: RunFolder, stop: object) -> None:
        raise DataError("a.tar: cannot be read") from cause

    monkeypatch.setattr(Job, "_run", fail)
    if is_allocated:
        monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
        monkeypatch.setenv("SLURM_JOB_ID", "1")
    run = make_run(tmp_path)
    with pytest.raises(DataError):
        Job(str(run.root))()
    assert capsys.readouterr().err == "a.tar: cannot be read\n"
    assert run.failure.exists() == (not (passes and is_allocated))
    run.failure.unlink(missing_ok=True)
    run.launch.mkdir(exist_ok=True)
    (run.launch / "1.restarts").write_text("xxx")  # the batch script will not queue it any more
    with pytest.raises(DataError):
        Job(str(run.root))()
    assert run.failure.exists()


def test_after_a_refused_requeue_the_main_rank_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Leaving the process group could wait for the others, which sleep until they are killed."""

    def refuse(self: Allocation) -> bool:
        raise LaunchError("SLURM refused")

    monkeypatch.setattr(Allocation, "requeue", refuse)
    monkeypatch.setattr(job, "leave_process", sys.exit)
    fence = Fence.raise_new(make_run(tmp_path))
    with pytest.raises(SystemExit, match=str(EXIT_STOPPED)):
        job._leave_allocation(Allocation("7", 0), fence, World(), Stopped("saved."))
    assert capsys.readouterr().err == "SLURM refused\n"


def test_a_superseded_start_says_so_once_ends_at_once_and_is_not_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "leave_process", sys.exit)
    run = make_run(tmp_path)
    run.launch.mkdir(exist_ok=True)
    fence = Fence.raise_new(run)
    Fence.raise_new(run)
    for _rank in range(2):
        with pytest.raises(SystemExit, match=str(EXIT_STOPPED)):
            job._leave_allocation(Allocation("7", 0), fence, World(), Stopped("superseded"))
    assert (run.launch / "7.0.superseded").exists()
    assert capsys.readouterr().err == "superseded\n"


def test_only_the_first_failure_is_heard(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert record_failure(run, DataError("first"))
    assert not record_failure(run, DataError("second"))
    assert json.loads(run.failure.read_text())["message"] == "first"


def test_threads_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert num_threads(Config(compute=ComputeConfig(threads_per_rank=3))) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "10000")
    assert num_threads(Config()) == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "7")
    assert num_threads(Config()) == 1, "local processes inside somebody's allocation"
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert num_threads(Config()) == 7


def test_a_full_disk_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(job.json, "dump", fail)
    run = RunFolder(tmp_path)
    assert record_failure(run, DataError("the disk is full"))
    assert not run.failure.exists()


def test_a_file_system_without_space_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Job, run: RunFolder, stop: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(run.root / "events.jsonl"))

    monkeypatch.setattr(Job, "_run", fail)
    run = make_run(tmp_path)
    with pytest.raises(DiskFull, match=r"events.jsonl: cannot be written .*Free space"):
        Job(str(run.root))()
    assert capsys.readouterr().err.count("Free space") == 1
    assert json.loads(run.failure.read_text())["error"] == "DiskFull"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do it their way")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    code = """
import resource, sys
import numpy as np
from auxdist.jobs.job import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
faults = []
for _ in range(3):
    np.ones(1 << 26, np.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[2] - faults[1])
"""
    pages = [
        int(subprocess.run([sys.executable, "-c", code, how], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout)
        for how in ("keep", "return")
    ]  # fmt: skip
    assert pages[0] < 10
    assert pages[1] > 20 * max(pages[0], 1), "the test would show nothing"


def test_a_launcher_needs_no_torch() -> None:
    code = "import sys, auxdist.jobs.submit; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert result.stdout == "False\n"


def test_the_error_of_a_superseded_start_is_not_the_runs(tmp_path: Path) -> None:
    """Else it would end a newer start, which may be doing well."""
    run = make_run(tmp_path, superseded=[0, 1], fail=[0, 1])
    assert count(run, procs=1).code == EXIT_STOPPED
    assert not run.failure.exists()
    assert not run.complete.exists()


def test_a_superseded_start_does_not_call_the_run_complete(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=1, superseded=[0, 1])
    assert count(run, procs=1).code == EXIT_STOPPED
    assert json.loads((run.root / "state.json").read_text()) == {"step": 1}
    assert not run.complete.exists()


@pytest.mark.parametrize(
    ("device", "gpus_per_node", "is_allocated", "expected"),
    [
        ("auto", 8, True, "cuda"),
        ("auto", 0, True, "auto"),
        ("auto", 8, False, "auto"),
        ("cpu", 8, True, "cpu"),
    ],
)
def test_gpus_that_slurm_gave_are_used_or_the_job_ends(
    device: Literal["auto", "cpu", "cuda"], gpus_per_node: int, is_allocated: bool, expected: str
) -> None:
    launch = LaunchConfig(gpus_per_node=gpus_per_node)
    config = Config(compute=ComputeConfig(device=device), launch=launch)
    assert wanted_device(config, is_allocated) == expected


@pytest.mark.parametrize(
    ("gpus", "may_be_bound", "is_good"),
    [(4, False, True), (2, True, False), (1, True, True), (1, False, False)],
)
def test_processes_do_not_share_a_gpu(
    gpus: int, may_be_bound: bool, is_good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    require_own_gpu(World(), may_be_bound)
    world = World(0, 4, 0, "cuda:0")
    if is_good:
        require_own_gpu(world, may_be_bound)
        return
    with pytest.raises(NodeFault, match=f"4 processes .* torch sees {gpus} GPUs"):
        require_own_gpu(world, may_be_bound)
