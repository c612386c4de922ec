"""kill -9 of any rank or of the launcher, then the same command again: the same label bytes."""

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from demo_run import build_shards, by_step, call, local_command, manifests
from slurm_cluster import until

from auxdist.observe.events import read_events
from auxdist.runfolder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def children(pid: int) -> list[int]:
    """The ranks of a launcher."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def num_events(run: RunFolder) -> int:
    return sum(1 for _ in read_events(run))


def start_and_kill(command: list[str], run: RunFolder, after: int, victim: int) -> int:
    """Start, and kill rank `victim` (2: the launcher) `after` events later; the exit code."""
    before = num_events(run)
    with (run.root.parent / "log").open("a") as log:
        launcher = subprocess.Popen(command, stdout=log, stderr=log)
    until(lambda: num_events(run) >= before + after or launcher.poll() is not None, limit_s=120)
    if launcher.poll() is None:
        os.kill([*children(launcher.pid), launcher.pid][victim], signal.SIGKILL)
    return launcher.wait(timeout=60)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that nothing interrupted."""
    run = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    call(*local_command(run, shards, procs=2))
    return run


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_runs_end_with_the_same_labels(
    shards: Path, whole: RunFolder, tmp_path: Path, seed: int
) -> None:
    killed = RunFolder(tmp_path / "killed")
    command = local_command(killed, shards, procs=2)
    dice = random.Random(seed)
    codes = [
        start_and_kill(command, killed, dice.randint(1, 25), dice.randrange(3)) for _ in range(5)
    ]
    deaths = (128 + signal.SIGKILL, -signal.SIGKILL)
    assert {*codes} <= {0, *deaths}
    assert sum(code in deaths for code in codes) >= 3, codes
    call(*command)
    assert by_step(killed, "keys", "keys") == by_step(whole, "keys", "keys")
    assert by_step(killed, "step", "loss") == by_step(whole, "step", "loss")
    assert len(manifests(whole)) == 4
    assert manifests(killed) == manifests(whole)
