"""The whole loop on a real SLURM cluster of 4 nodes, interrupted, equals launch/local.py."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_run import NUM_TRAIN, ROOT, build_shards, by_step, call, launch_words, local_command
from demo_run import manifests as label_manifests
from slurm_cluster import Cluster, needs_cluster, start_cluster, until

from auxdist.runfolder import RunFolder

pytestmark = [pytest.mark.cluster, needs_cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from start_cluster(tmp_path_factory.mktemp("cluster"))


def logs(run: RunFolder) -> str:
    return "\n".join(path.read_text() for path in sorted(run.launch.glob("*_log.*")))


def test_four_interrupted_nodes_equal_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    shards = build_shards(tmp_path / "shards")
    remote, here = RunFolder(tmp_path / "slurm"), RunFolder(tmp_path / "local")
    launch = [sys.executable, str(ROOT / "launch" / "slurm.py"), "--nodes", "4", "--time", "60"]
    out = cluster.run(*launch, *launch_words(remote, shards))
    job_id = out.split()[1].rstrip(",")
    until(lambda: (0, 1) in by_step(remote, "step", "loss"), limit_s=120)
    cluster.run("scancel", "--signal=USR2", job_id)
    facts = cluster.wait(job_id, limit_s=300)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), logs(remote)
    assert remote.complete.exists()

    call(*local_command(here, shards, procs=4))
    for rank in range(4):
        order = by_step(here, "keys", "keys", rank)
        assert len(order) == NUM_TRAIN // 8 + 3 * 2 * NUM_TRAIN // 8
        assert by_step(remote, "keys", "keys", rank) == order
    losses = by_step(here, "step", "loss")
    assert by_step(remote, "step", "loss") == pytest.approx(losses, rel=1e-5)
    assert len(label_manifests(here)) == 4
    assert label_manifests(remote) == label_manifests(here)
    for name in ("val-round-02", "labels-round-03"):
        matrices = [json.loads(r.evaluation(name).read_text())["matrix"] for r in (remote, here)]
        assert matrices[0] == matrices[1]
