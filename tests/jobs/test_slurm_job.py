"""On a real SLURM cluster of 4 nodes: ranks, stops, restarts and deaths of a job that counts."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from counting_job import CountingJob
from slurm_cluster import Cluster, needs_cluster, start_cluster, until

from auxdist.config import ComputeConfig, Config, LaunchConfig
from auxdist.configfile import dump_config
from auxdist.jobs.spec import JobExecutor, launch_spec
from auxdist.runfolder import RunFolder, write_json, write_text
from auxdist.train.guard import current_incarnation

pytestmark = [pytest.mark.cluster, needs_cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from start_cluster(tmp_path_factory.mktemp("cluster"))


@dataclass(frozen=True)
class Submitted:
    """A counting job in the queue."""

    run: RunFolder
    job_id: str

    @property
    def step(self) -> int:
        path = self.run.root / "state.json"
        return int(json.loads(path.read_text())["step"]) if path.exists() else 0

    def starts(self) -> list[str]:
        return (self.run.root / "starts").read_text().splitlines()

    def rank(self, rank: int) -> dict[str, str]:
        facts: dict[str, str] = json.loads((self.run.root / f"rank-{rank}.json").read_text())
        return facts

    def log(self) -> str:
        paths = sorted(self.run.launch.glob(f"{self.job_id}_*_log.*"))
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in paths)


Submit = Callable[..., Submitted]


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submit:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)

    def counting(launch: dict | None = None, **plan: object) -> Submitted:
        run = RunFolder(tmp_path / "it's a run")  # a name that needs quoting everywhere
        setup = (f"export PYTHONPATH={ROOT / 'tests'}",)
        options = {"time_min": 60, "setup": setup, **(launch or {})}
        config = Config(
            name="count",
            compute=ComputeConfig(device="cpu", threads_per_rank=1, timeout_s=60),
            launch=LaunchConfig(**options),
        )
        run.launch.mkdir(parents=True)
        write_text(run.config, dump_config(config))
        write_json(run.root / "plan.json", {"steps": 10, "step_s": 0.05, **plan})
        executor = JobExecutor(launch_spec(config, run, ROOT), run.launch)
        return Submitted(run, executor.submit(CountingJob(str(run.root))).job_id)

    return counting


def completed(cluster: Cluster, job: Submitted) -> dict[str, str]:
    facts = cluster.wait(job.job_id)
    assert facts["JobState"] == "COMPLETED", job.log()
    assert job.run.complete.exists()
    return facts


def test_one_rank_on_each_task(cluster: Cluster, submit: Submit) -> None:
    job = submit({"nodes": 4, "procs_per_node": 2})
    completed(cluster, job)
    assert sorted(job.starts()) == [f"{rank} of 8 at 0" for rank in range(8)]
    for rank in range(8):
        assert job.rank(rank)["LOCAL_RANK"] == str(rank % 2)
        assert job.rank(rank)["SLURMD_NODENAME"] == f"node{rank // 2 + 1}"


def test_a_signal_saves_on_all_ranks_and_the_job_goes_on(cluster: Cluster, submit: Submit) -> None:
    job = submit({"nodes": 2}, steps=120, step_s=0.05)
    until(lambda: job.step > 5)
    cluster.run("scancel", "--signal=USR2", job.job_id)
    facts = completed(cluster, job)
    assert facts["Restarts"] == "1"
    first, second = {int(line.split()[-1]) for line in job.starts()}
    assert sorted(job.starts()) == sorted(
        f"{r} of 2 at {s}" for r in (0, 1) for s in (first, second)
    )
    assert second > first == 0
    assert "is queued again" in job.log()
    assert current_incarnation(job.run) == 2
    assert not list(job.run.launch.glob("*.restarts"))


def test_preemption_saves_and_goes_on(cluster: Cluster, submit: Submit) -> None:
    job = submit({"nodes": 2, "partition": "low"}, steps=120, step_s=0.05)
    until(lambda: job.step > 5)
    wanted = ("-N4", "-phigh", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    high = cluster.run("sbatch", "--parsable", *wanted)
    facts = completed(cluster, job)
    assert facts["Restarts"] == "1"
    assert max(int(line.split()[-1]) for line in job.starts()) > 0
    assert cluster.wait(high.strip())["JobState"] == "COMPLETED"


def test_a_killed_rank_queues_the_job_again(cluster: Cluster, submit: Submit) -> None:
    job = submit({"nodes": 3}, die=[1, 6])
    facts = completed(cluster, job)
    assert facts["Restarts"] == "1"
    assert "a process was lost" in job.log()
    first, second = sorted({int(line.split()[-1]) for line in job.starts()})
    assert first == 0
    assert 5 <= second <= 7  # the main rank may be a step before or behind the one that died


def test_a_job_that_fails_for_good_is_not_queued_again(cluster: Cluster, submit: Submit) -> None:
    job = submit({"nodes": 2}, fail=[1, 3])
    facts = cluster.wait(job.job_id)
    assert facts["JobState"] == "FAILED"
    assert facts["Restarts"] == "0"
    assert json.loads(job.run.failure.read_text())["rank"] == 1
    assert "sample x: is damaged" in job.log()


def test_a_cancelled_job_stays_cancelled(cluster: Cluster, submit: Submit) -> None:
    job = submit({"nodes": 2}, steps=1000, step_s=0.05)
    until(lambda: job.step > 5)
    cluster.run("scancel", job.job_id)
    assert cluster.wait(job.job_id)["JobState"] == "CANCELLED"
    time.sleep(8)
    assert cluster.job(job.job_id)["JobState"] == "CANCELLED"
    assert len(job.starts()) == 2


def test_a_start_elsewhere_ends_this_one_without_a_requeue(
    cluster: Cluster, submit: Submit
) -> None:
    job = submit({"nodes": 2}, steps=1000, step_s=0.05)
    until(lambda: job.step > 5)
    write_text(job.run.incarnation, "7\n")
    facts = cluster.wait(job.job_id)
    assert facts["JobState"] == "FAILED"
    assert facts["Restarts"] == "0"
    assert "a later one has begun meanwhile" in job.log()
