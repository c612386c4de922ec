"""The training stream of a process with a GPU, whose workers are not forked from it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from labelmaker import PlainLabels, make_round
from shardmaker import make_shards

from auxdist.config import CropConfig, DataConfig
from auxdist.data.plan import Plan
from auxdist.data.stream import _prepare_worker, batches
from auxdist.errors import DataError
from auxdist.labels.store import LabelSet, open_labels
from auxdist.records import Batch
from auxdist.runfolder import RunFolder

DATA = DataConfig(workers=2, crop=CropConfig(size=40))
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")  # no GPU


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelSet:
    torch.set_num_threads(1)
    index = make_shards(tmp_path_factory.mktemp("shards"), 12, 2, size=(48, 36))
    run = RunFolder(tmp_path_factory.mktemp("run"))
    make_round(run, index, PlainLabels())
    return open_labels(run.labels(0), index)


def stream(
    labels: LabelSet, data: DataConfig = DATA, *, on_gpu: bool = True, epochs: int = 2
) -> Generator[Batch, None, None]:
    plan = Plan(
        labels.index.shard_sizes(False),
        seed=0,
        round=0,
        epochs=epochs,
        global_batch=4,
        shuffle_shards=2,
        last_batch="drop",
    )
    return batches(labels.index, plan, data, labels, pin_memory=on_gpu)


def test_batches_are_those_of_the_training_process_itself(labels: LabelSet) -> None:
    here = list(stream(labels, replace(DATA, workers=0), on_gpu=False))
    there = list(stream(labels))
    assert len(here) == len(there) == 6
    for one, two in zip(here, there, strict=True):
        assert one.keys == two.keys
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(two, name)), name


def test_workers_are_no_copies_of_the_training_process(labels: LabelSet) -> None:
    """What it holds open, as connections of NCCL, they do not have."""
    running = stream(labels)
    next(running)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        (parent,) = (
            line.split()[1]
            for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines()
            if line.startswith("PPid:")
        )
        assert int(parent) != os.getpid()
    running.close()
    assert multiprocessing.active_children() == []


SCRIPT = """
import multiprocessing, os, signal
from pathlib import Path
import test_stream_gpu
import auxdist.data.stream
from auxdist.data.index import load_index
from auxdist.labels.store import open_labels
if __name__ == "__main__":
    auxdist.data.stream._prepare_worker = test_stream_gpu.prepare_slowly
    labels = open_labels(Path({labels!r}), load_index({root!r}))
    running = test_stream_gpu.stream(labels, epochs={epochs})
    next(running)
    {rest}
"""
SIGNALS = """for process in multiprocessing.active_children():
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            os.kill(process.pid, name)
    assert len(list(running)) == 5"""


def prepare_slowly(worker: int) -> None:
    """Let worker 1 still start while worker 0 gives its first batch."""
    time.sleep(0.5 * worker)
    _prepare_worker(worker)


def started(labels: LabelSet, folder: Path, rest: str, epochs: int = 2) -> subprocess.Popen[bytes]:
    """A training process of its own, in a group of its own, which did a step and then `rest`."""
    script, here = folder / "training.py", Path(__file__).parent
    root, given = str(labels.index.root), str(labels.folder)
    script.write_text(SCRIPT.format(root=root, labels=given, rest=rest, epochs=epochs))
    paths = os.pathsep.join(map(str, (here, here.parent, here.parents[1])))
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-W", "ignore", str(script)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def test_nothing_outlives_a_killed_training_process(labels: LabelSet, tmp_path: Path) -> None:
    process = started(labels, tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", epochs=1000)
    assert process.wait(timeout=60) == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while _runs(process.pid):
        assert time.monotonic() < deadline, "its workers live on"
        time.sleep(0.1)


def test_signals_to_the_job_do_not_end_the_workers(labels: LabelSet, tmp_path: Path) -> None:
    """Not even one that still starts; in a process that began no such workers before."""
    assert started(labels, tmp_path, SIGNALS).wait(timeout=60) == 0


def _runs(group: int) -> bool:
    """Whether a process of this group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_worker_is_an_error_not_a_hang(labels: LabelSet) -> None:
    running = stream(labels, epochs=1000)
    next(running)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a reader process died .*Lower data\.workers"):
        list(running)
