"""What is asked of SLURM, where it refuses or is not there: a stand-in answers for scontrol."""

from __future__ import annotations

from pathlib import Path

import pytest

from auxdist.errors import LaunchError
from auxdist.jobs.slurm import Allocation, job_state

RUNNING = "echo JobId=7 JobState=RUNNING Reason=None"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which commands are looked for; empty."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def answer(commands: Path, show: str, requeue: str = "exit 1") -> None:
    """Put a scontrol there that answers `show` and `requeue` with these shell commands."""
    script = commands / "scontrol"
    script.write_text(f'#!/bin/sh\ncase "$1" in show) {show} ;; requeue) {requeue} ;; esac\n')
    script.chmod(0o755)


def test_the_state_is_what_scontrol_says(commands: Path) -> None:
    """One word of its line; a job it does not know has none."""
    answer(commands, RUNNING)
    assert job_state("7") == "RUNNING"

    answer(commands, "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1")
    assert job_state("7") is None


def test_a_machine_without_slurm_is_told_from_a_job_that_ended(commands: Path) -> None:
    """No scontrol is no answer, and the message says where to ask."""
    assert not list(commands.iterdir())
    with pytest.raises(LaunchError, match=r"about job 7 .*; ask again, on a node of the cluster"):
        job_state("7")


def test_a_controller_that_does_not_answer_is_told_from_a_job_that_ended(commands: Path) -> None:
    """Its own words are passed on."""
    answer(commands, "echo Unable to contact slurm controller >&2; exit 1")

    with pytest.raises(LaunchError, match=r"Unable to contact slurm controller.*; try again"):
        job_state("7")


def test_a_refused_requeue_says_that_everything_is_saved(commands: Path) -> None:
    """The user must know that giving the command again is all there is to do."""
    answer(commands, RUNNING, requeue="echo Requeue is disabled >&2; exit 1")

    with pytest.raises(LaunchError, match=r"job 7 again \(Requeue is disabled\); everything is"):
        Allocation("7", restart=0).requeue()


@pytest.mark.parametrize(("restarts", "is_queued"), [(0, True), (1, False)])
def test_only_the_start_that_runs_is_queued_again(
    commands: Path, restarts: int, is_queued: bool
) -> None:
    """A node that comes back to the network may still hold the start before."""
    shown = f"echo JobId=7 JobState=RUNNING Restarts={restarts} BatchFlag=1"
    answer(commands, shown, requeue=f": > {commands}/requeued")
    assert Allocation("7", restart=0).requeue() == is_queued
    assert (commands / "requeued").exists() == is_queued


def test_a_cancelled_job_is_not_queued_again(commands: Path) -> None:
    """scancel is the user's word; only a job that runs is put back."""
    answer(commands, "echo JobId=7 JobState=CANCELLED", requeue=f": > {commands}/requeued")
    assert not Allocation("7", restart=0).requeue()
    assert not (commands / "requeued").exists()
