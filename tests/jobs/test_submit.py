"""From the command line to a run folder: once made, a run keeps its configuration."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shardmaker import make_shards

from auxdist.configfile import load_config
from auxdist.errors import ConfigError, LaunchError
from auxdist.evaluate.confusion import Measurement
from auxdist.jobs.submit import Request, create_run, last_job, start_locally, submit
from auxdist.runfolder import RunFolder, write_json

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """\
name: tiny
data: {train: shards, val: shards}
model: {backbone: small, num_classes: 3}
classifier: {global_batch: 4}
train:
  rounds: 1
  global_batch: 4
compute: {device: cpu, threads_per_rank: 1}
launch: {nodes: 2}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_shards(tmp_path / "shards", 8, 2)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def request(*overrides: str, run: str | None = None) -> Request:
    return Request(Path("tiny.yaml"), overrides, Path(run) if run else None)


def launch(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / script), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_run_folder_holds_the_resolved_configuration(folder: Path) -> None:
    run, config = create_run(request("train.rounds=2"), 2)
    assert run.root == folder / "runs" / "tiny"
    assert load_config(run.config) == config
    assert config.train.rounds == 2
    assert config.data.train == str(folder / "shards")


def test_paths_become_absolute_but_imagenet_is_no_path(folder: Path) -> None:
    (folder / "w.pth").touch()
    stated = [f"{section}.weights=w.pth" for section in ("model", "classifier")]
    config = request(*stated).config()
    absolute = str(folder / "w.pth")
    assert (config.model.weights, config.classifier.weights) == (absolute, absolute)
    assert request("model.weights=imagenet").config().model.weights == "imagenet"


def test_the_same_command_opens_the_run_again(folder: Path) -> None:
    assert create_run(request(), 2) == create_run(request(), 2)


def test_a_new_run_of_random_weights_is_warned_of_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for expected in ("efficientnet-lite0 starts at random", ""):
        create_run(request("model.backbone=efficientnet-lite0"), 2)
        printed = capsys.readouterr().out
        assert expected in printed
    assert printed == ""


def test_what_nothing_learned_depends_on_may_change(folder: Path) -> None:
    create_run(request(), 2)
    run, config = create_run(request("launch.nodes=4", "data.workers=0"), 4)
    assert load_config(run.config).launch.nodes == config.launch.nodes == 4


def test_another_configuration_is_refused_with_all_keys(folder: Path) -> None:
    run, _ = create_run(request(), 2)
    before = run.config.read_text()
    with pytest.raises(ConfigError) as caught:
        create_run(request("train.epochs=3", "seed=7"), 2)
    first, second = caught.value.problems
    assert first.startswith(f"{run.config}: seed is 0 in this run, but 7 is asked for")
    assert "train.epochs is 15 in this run, but 3" in second
    assert "--run with another folder" in second
    assert run.config.read_text() == before


def test_another_way_to_the_same_shards_is_no_other_configuration(folder: Path) -> None:
    create_run(request())
    (folder / "elsewhere").symlink_to(folder)
    for way in ("elsewhere/shards", "shards/../shards"):
        create_run(request(f"data.train={way}"))
    make_shards(folder / "others", 8, 2)
    with pytest.raises(ConfigError, match=r"data\.train is .*/shards in this run"):
        create_run(request("data.train=others"))


def test_a_run_may_be_given_more_rounds_but_not_fewer(folder: Path) -> None:
    run, _ = create_run(request(), 2)
    write_json(run.complete, {})
    run.examples.touch()
    _, config = create_run(request("train.rounds=3"), 2)
    assert load_config(run.config).train.rounds == config.train.rounds == 3
    assert not run.complete.exists()
    assert not run.examples.exists(), "the picture of fewer rounds is to be drawn anew"
    with pytest.raises(ConfigError, match=r"train\.rounds is 3 in this run, but 1 is asked for"):
        create_run(request(), 2)


def test_a_death_while_rounds_are_added_leaves_nothing_that_says_complete(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    run, _ = create_run(request(), 2)
    write_json(run.complete, {})
    with monkeypatch.context() as patch:
        patch.setattr("auxdist.jobs.submit.write_text", die)
        with pytest.raises(KeyboardInterrupt):
            create_run(request("train.rounds=3"), 2)
    assert not run.complete.exists()
    create_run(request("train.rounds=3"), 2)
    assert load_config(run.config).train.rounds == 3


def test_problems_name_the_line_that_states_the_key(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        create_run(request("classifier.global_batch=15"), 3)
    assert caught.value.problems[0].startswith("tiny.yaml:7: train.global_batch is 4")
    assert not (folder / "runs").exists()


def test_a_run_path_that_slurm_would_misread_is_refused(folder: Path) -> None:
    with pytest.raises(LaunchError, match="SLURM reads %"):
        create_run(request(run="runs/50%j"), 2)


def test_a_new_start_forgets_the_old_failure(folder: Path) -> None:
    run, _ = create_run(request(), 2)
    write_json(run.failure, {})
    create_run(request(), 2)
    assert not run.failure.exists()


def test_two_launchers_do_not_share_a_run(folder: Path) -> None:
    run, config = create_run(request(), 2)
    with (run.launch / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LaunchError, match=r"another launcher is at work in this folder"):
            start_locally(run, config, 2)


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    (folder / "bin").mkdir()
    for name, body in scripts.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")


def fake_queue(folder: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """A SLURM that takes job 41, and then says this of its state."""
    sbatch, scontrol = 'echo "Submitted batch job 41"', f"echo JobId=41 JobState={state} Reason=x"
    fake_slurm(folder, monkeypatch, sbatch=sbatch, scontrol=scontrol)


def test_a_run_is_submitted_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_queue(folder, monkeypatch, "PENDING")
    run, config = create_run(request())
    assert submit(run, config) == "41"
    assert last_job(run) == "41"
    assert "--nodes=2" in (run.launch / "41_submission.sh").read_text()
    with pytest.raises(LaunchError, match=r"job 41 of this run is PENDING.*scancel 41"):
        submit(run, config)


def test_sbatch_is_not_misled_by_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm(folder, monkeypatch, sbatch="env > seen; echo Submitted batch job 41")
    misleading = {
        "SBATCH_TIMELIMIT": "1",
        "SBATCH_NO_REQUEUE": "1",
        "SLURM_ARRAY_JOB_ID": "3",
        "SLURM_CPU_BIND": "mask",
        "SUBMITIT_EXECUTOR": "slurm",
    }
    kept = {"SLURM_JOB_ID": "3", "SLURM_CONF": "/etc/slurm.conf", "SBATCH_PARTITION": "cheap"}
    for name, value in (misleading | kept).items():
        monkeypatch.setenv(name, value)
    submit(*create_run(request()))
    seen = dict(line.partition("=")[::2] for line in Path("seen").read_text().splitlines())
    assert not misleading.keys() & seen.keys()
    assert "SLURM_JOB_ID" not in seen
    assert (seen["SLURM_CONF"], seen["SBATCH_PARTITION"]) == ("/etc/slurm.conf", "cheap")
    assert os.environ["SLURM_CPU_BIND"] == "mask", "only sbatch was not to see it"


def test_the_words_of_sbatch_reach_the_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_slurm(folder, monkeypatch, sbatch="echo invalid partition specified: x >&2; exit 1")
    run, config = create_run(request())
    with pytest.raises(LaunchError, match=r"(?s)sbatch refused.*invalid partition specified: x"):
        submit(run, config)


def test_a_run_in_the_queue_is_not_changed_by_another_launcher(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the job would go on by a configuration that nobody was told to be in force."""
    fake_queue(folder, monkeypatch, "RUNNING")
    run, config = create_run(request())
    submit(run, config)
    write_json(run.failure, {})
    before = run.config.read_text()
    result = launch("local.py", "tiny.yaml", "--set", "train.rounds=3")
    assert result.returncode == 2
    assert "job 41 of this run is RUNNING" in result.stderr
    assert run.config.read_text() == before
    assert run.failure.exists()


def test_another_way_of_measuring_is_more_to_do(folder: Path) -> None:
    run, _ = create_run(request(), 2)
    write_json(run.complete, {})
    create_run(request("launch.nodes=4", "evaluate.crf=false", "data.measure_labels=false"), 4)
    assert run.complete.exists(), "the run itself looks at one scale"
    create_run(request("evaluate.window=640"), 2)
    assert not run.complete.exists()


def test_the_micro_batch_may_change_with_the_number_of_processes(folder: Path) -> None:
    create_run(request("train.micro_batch=2"), 1)
    create_run(request("train.micro_batch=2"), 4)  # more than a rank's share is all of it
    _, config = create_run(request("train.micro_batch=1"), 1)
    assert config.train.micro_batch == 1


def test_a_file_system_without_locks_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LaunchError, match=r"lock: cannot be locked \(Function not implemented\)"):
        create_run(request(), 2)


def test_submitting_without_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, config = create_run(request())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match="sbatch: not found"):
        submit(run, config)


def test_dry_run_prints_and_writes_and_commits_to_nothing(folder: Path) -> None:
    result = launch("slurm.py", "--nodes", "4", "--time", "30", "--dry-run", "tiny.yaml")
    assert result.returncode == 0, result.stderr
    dry = folder / "runs" / "tiny" / "launch" / "dry-run"
    batch = (dry / "job.sbatch").read_text()
    assert "#SBATCH --nodes=4" in batch
    assert "#SBATCH --time=30" in batch
    assert batch in result.stdout
    assert load_config(dry / "config.yaml").launch.time_min == 30
    assert not RunFolder(folder / "runs" / "tiny").config.exists()


def test_dry_run_needs_no_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert launch("slurm.py", "--dry-run", "tiny.yaml").returncode == 0


@pytest.mark.parametrize("script", ["local.py", "slurm.py"])
def test_errors_are_lines_not_tracebacks(folder: Path, script: str) -> None:
    result = launch(script, "tiny.yaml", "--set", "train.runds=2")
    assert result.returncode == 2
    assert "train.runds is not a key; did you mean" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("script", ["local.py", "slurm.py"])
def test_a_complete_run_says_so_and_shows_its_table(folder: Path, script: str) -> None:
    run, _ = create_run(request(), 1)
    write_json(run.complete, {})
    measured = Measurement(np.array([[3, 1, 0], [1, 3, 0]]), 0, 1)
    write_json(run.evaluation("val-round-00"), measured.as_json())
    result = launch(script, "tiny.yaml")
    assert result.returncode == 0, result.stderr
    assert "everything is done already" in result.stdout
    assert "60.00" in result.stdout


def test_a_complete_run_given_more_rounds_is_submitted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm(folder, monkeypatch, sbatch='echo "Submitted batch job 42"', scontrol="exit 1")
    run, _ = create_run(request())
    write_json(run.complete, {})
    result = launch("slurm.py", "tiny.yaml", "--set", "train.rounds=2")
    assert result.returncode == 0, result.stderr
    assert last_job(run) == "42"
    assert load_config(run.config).train.rounds == 2
