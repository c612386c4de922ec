"""The promises of training: order, gradient, resume, and what never depends on the truth."""

import gc
import json
import random
import shutil
import weakref
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ranks import run_ranks
from shardmaker import make_shards
from smallrun import SIZE, StopAfter, do_tasks, file_bytes, make_data, small_config

from auxdist.config import Config
from auxdist.errors import CheckpointError, ConfigError, DataError, Stopped
from auxdist.jobs.job import raise_fence
from auxdist.labels.manifest import read_manifest
from auxdist.model import AuxSegNet
from auxdist.observe.events import EventLog, read_events
from auxdist.records import CLASSIFIER_ROUND, Position
from auxdist.runfolder import RunFolder
from auxdist.train import loop as loop_module
from auxdist.train.ddp import DdpEngine
from auxdist.train.guard import Fence, StopFlag
from auxdist.train.networks import final_checkpoint, starting_network
from auxdist.train.rounds import run_all
from auxdist.world import World

FIRST_TASKS = ("train classifier", "labels round-00")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_data(root)
    return root


@pytest.fixture(scope="module")
def begun(data: Path) -> Path:
    """A run that is ready for the training of round 0."""
    root = data / "begun"
    do_tasks(RunFolder(root), small_config(data), World(), FIRST_TASKS)
    return root


def copies(run: Path, *folders: Path) -> list[RunFolder]:
    """The same run in other folders."""
    return [RunFolder(Path(shutil.copytree(run, folder))) for folder in folders]


def train_round(world: World, root: str, config: Config) -> None:
    do_tasks(RunFolder(Path(root)), config, world, ("train round-00",))


def steps_of(
    run: RunFolder, ranks: int
) -> tuple[dict[int, list[str]], dict[int, dict[str, float]]]:
    """Keys of every step in the order of the global batch, and the losses of every step."""
    keys: dict[int, list[str]] = defaultdict(list)
    losses = {}
    for rank in range(ranks):
        for record in read_events(run, rank):
            if record["kind"] == "keys" and record["round"] == 0:
                keys[record["step"]] += record["keys"]
            if record["kind"] == "step" and record["round"] == 0:
                losses[record["step"]] = record["parts"]
    return dict(keys), losses


def test_worlds_1_2_and_4_see_the_same_batches_and_losses_over_20_steps(
    data: Path, begun: Path, tmp_path: Path
) -> None:
    keys: dict[int, list[str]] = {}
    losses: dict[int, dict[str, float]] = {}
    config = small_config(data, epochs=4)  # 24 steps
    # of 4 samples a step 4, 2, 1 on each rank at once; and 3 + 1 one after another, 1 + 1 on each
    for ranks, micro_batch in ((1, 0), (2, 0), (4, 0), (1, 3), (2, 1)):
        config = replace(config, train=replace(config.train, micro_batch=micro_batch))
        (run,) = copies(begun, tmp_path / f"{ranks} ranks, {micro_batch} at once")
        if ranks == 1:
            train_round(World(), str(run.root), config)
        else:
            run_ranks(ranks, train_round, str(run.root), config)
        found = steps_of(run, ranks)
        if not keys:
            keys, losses = found
        assert found[0] == keys
        for step in range(20):
            expected = pytest.approx(losses[step], rel=2e-4, abs=1e-6)
            assert found[1][step] == expected, (ranks, micro_batch, step)
    assert len(losses) == 24
    assert sorted(key for step in range(6) for key in keys[step]) == [
        f"img-{n:05d}" for n in range(22)
    ]


def test_interrupted_anywhere_and_resumed_is_bitwise_never_interrupted(
    data: Path, begun: Path, tmp_path: Path
) -> None:
    config = small_config(data)
    whole, pieces = copies(begun, tmp_path / "whole", tmp_path / "pieces")
    train_round(World(), str(whole.root), config)

    steps = sorted(random.Random().sample(range(1, 12), 3))  # a failure prints them
    for number, step in enumerate(steps):
        before = steps[number - 1] if number else 0
        with pytest.raises(Stopped, match=f"saved at step {step}/12"):
            do_tasks(pieces, config, World(), ("train round-00",), StopAfter(step - before))
    train_round(World(), str(pieces.root), config)
    first, second = final_checkpoint(whole, 0), final_checkpoint(pieces, 0)
    assert first.weights_sha256 == second.weights_sha256, steps
    assert file_bytes(first.folder) == file_bytes(second.folder)
    assert steps_of(whole, 1)[1] == steps_of(pieces, 1)[1]
    assert steps_of(whole, 1)[0] == steps_of(pieces, 1)[0], "a sample was read twice"


def interrupted_pair(world: World, root: str, config: Config) -> bool:
    """Stop two ranks after 5 steps, though only rank 1 was told to."""
    stop = StopAfter(5 if world.rank == 1 else 1000)
    try:
        do_tasks(RunFolder(Path(root)), config, world, ("train round-00",), stop)
    except Stopped:
        return True
    return False


@pytest.mark.parametrize("engine", ["ddp", pytest.param("deepspeed", marks=pytest.mark.slow)])
def test_a_stop_told_to_one_rank_stops_all_and_resumes_bitwise_at_the_same_world(
    data: Path, begun: Path, tmp_path: Path, engine: Any
) -> None:
    if engine == "deepspeed":
        pytest.importorskip("deepspeed", reason="the extra auxdist[deepspeed] is not installed")
    config = small_config(data)
    config = replace(config, train=replace(config.train, engine=engine))
    whole, pieces = copies(begun, tmp_path / "whole", tmp_path / "pieces")
    run_ranks(2, train_round, str(whole.root), config)
    assert run_ranks(2, interrupted_pair, str(pieces.root), config) == [True, True]
    run_ranks(2, train_round, str(pieces.root), config)
    assert final_checkpoint(whole, 0).weights_sha256 == final_checkpoint(pieces, 0).weights_sha256


def test_a_run_resumed_at_another_world_size_sees_the_same_samples_and_is_fp32_close(
    data: Path, begun: Path, tmp_path: Path
) -> None:
    config = small_config(data)
    whole, moved = copies(begun, tmp_path / "whole", tmp_path / "moved")
    train_round(World(), str(whole.root), config)
    with pytest.raises(Stopped):
        do_tasks(moved, config, World(), ("train round-00",), StopAfter(5))
    run_ranks(2, train_round, str(moved.root), config)
    keys, losses = steps_of(whole, 1)
    moved_keys, moved_losses = steps_of(moved, 2)
    assert moved_keys == keys
    assert moved_losses.keys() == losses.keys()
    first, second = final_checkpoint(whole, 0).weights(), final_checkpoint(moved, 0).weights()
    for name, tensor in first.items():
        np.testing.assert_allclose(second[name], tensor, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def finished(data: Path) -> Path:
    root = data / "finished"
    do_tasks(RunFolder(root), small_config(data), World())
    return root


def test_a_whole_run_leaves_labels_checkpoints_and_measurements(finished: Path) -> None:
    run = RunFolder(finished)
    names = ("val-round-00", "labels-round-00", "labels-round-01", "cam-round-00")
    found: dict[str, Any] = {name: json.loads(run.evaluation(name).read_text()) for name in names}
    assert all(0 <= value["miou"] <= 1 for value in found.values())
    assert [found[name]["num_images"] for name in names] == [9, 22, 22, 22]
    assert len(found["labels-round-01"]["precision"]) == len(found["cam-round-00"]["recall"]) == 4
    assert run.latest_labels.read_text() == "round-01\n"
    gates = final_checkpoint(run, 0).weights()
    gamma = {task: gates[f"gamma_{task}"].item() for task in ("seg", "sal")}
    assert read_manifest(run.labels(1)).gamma == gamma
    assert gamma["seg"] != 0
    assert read_manifest(run.labels(0)).gamma == {}, "CAMs of the classifier know no affinity"
    assert final_checkpoint(run, 0).position.step == 12
    assert final_checkpoint(run, CLASSIFIER_ROUND).position.step == 3, "its own batches and epochs"
    assert cv2.imread(str(run.examples)) is not None


def test_labels_and_weights_are_the_same_without_any_ground_truth(
    finished: Path, tmp_path: Path
) -> None:
    """Nothing but measuring opens gt.png: take it away and nothing learned changes."""
    make_data(tmp_path, ground_truth=False)
    run = RunFolder(tmp_path / "run")
    do_tasks(run, small_config(tmp_path), World())

    def is_label(path: Path) -> bool:
        return path.suffix in (".tar", ".png")

    for round in (0, 1):
        assert file_bytes(run.labels(round), is_label) == file_bytes(
            RunFolder(finished).labels(round), is_label
        )
    first, second = final_checkpoint(run, 0), final_checkpoint(RunFolder(finished), 0)
    assert first.weights_sha256 == second.weights_sha256
    assert not run.evaluation("labels-round-00").exists()
    assert run.evaluation("val-round-00").exists()


def test_a_run_stopped_in_every_task_goes_on_to_the_same_end(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    run, stops = RunFolder(tmp_path / "run"), 0
    while stops < 60:
        try:
            do_tasks(run, small_config(data), World(), stop=StopAfter(30))
            break
        except Stopped:
            stops += 1
    assert stops >= 4
    for folder in ("labels", "evaluation"):
        assert file_bytes(run.root / folder) == file_bytes(finished / folder)


def test_a_run_given_more_rounds_ends_as_if_it_had_had_them_at_first(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    """Nothing that a round leaves depends on how many are to come."""
    (longer,) = copies(finished, tmp_path / "longer")
    longer.examples.unlink()  # as create_run does
    whole = RunFolder(tmp_path / "whole")
    for run in (longer, whole):
        do_tasks(run, small_config(data, rounds=2), World())
    for folder in ("labels", "evaluation", "checkpoints"):
        assert file_bytes(longer.root / folder) == file_bytes(whole.root / folder)
    assert longer.examples.read_bytes() == whole.examples.read_bytes()


def test_a_network_is_measured_anew_where_the_way_to_look_changes(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    """All rows of a table are measured alike; what looks the same way is not done again."""
    (run,) = copies(finished, tmp_path / "run")
    val, labels = run.evaluation("val-round-00"), run.evaluation("labels-round-00")
    times = [path.stat().st_mtime_ns for path in (val, labels)]
    config = small_config(data)
    do_tasks(run, config, World())
    assert [path.stat().st_mtime_ns for path in (val, labels)] == times
    config = replace(config, evaluate=replace(config.evaluate, window=32))
    do_tasks(run, config, World())
    assert json.loads(val.read_text())["inference"]["window"] == 32
    assert val.stat().st_mtime_ns > times[0]
    assert labels.stat().st_mtime_ns == times[1]


def test_a_stage_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    """Its steps count in the order of the images that it began with."""
    make_data(tmp_path)
    run, config = RunFolder(tmp_path / "run"), small_config(tmp_path)
    with pytest.raises(Stopped):
        do_tasks(run, config, World(), stop=StopAfter(2))
    shutil.rmtree(tmp_path / "train")
    make_shards(tmp_path / "train", 24, 3, 3, SIZE)
    with pytest.raises(DataError, match="was trained on other images than are now in"):
        do_tasks(run, config, World())


def test_without_refresh_all_rounds_learn_from_the_first_labels(
    data: Path, begun: Path, tmp_path: Path
) -> None:
    refreshing = small_config(data, rounds=2)
    config = replace(refreshing, labels=replace(refreshing.labels, refresh=False))
    run, other = copies(begun, tmp_path / "run", tmp_path / "refreshing")
    do_tasks(run, config, World())
    assert not run.labels(1).exists()
    assert run.evaluation("val-round-01").exists()
    assert final_checkpoint(run, 1).is_final
    assert run.examples.exists()

    do_tasks(other, refreshing, World())
    networks = [
        [final_checkpoint(each, round).weights_sha256 for each in (run, other)] for round in (0, 1)
    ]
    assert networks[0][0] == networks[0][1], "both learned the first round from the first labels"
    assert networks[1][0] != networks[1][1], "the second learned from what the refresh made"


def test_a_round_starts_from_the_network_that_the_one_before_left(
    data: Path, finished: Path
) -> None:
    run, config = RunFolder(finished), small_config(data)
    for round in (0, 1):
        left = final_checkpoint(run, round - 1).weights()
        start = starting_network(run, config, round).state_dict()
        assert start.keys() == left.keys()
        assert all(torch.equal(start[name], value) for name, value in left.items())


def test_checkpoints_come_as_often_as_configured_and_so_many_are_kept(
    data: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = copies(begun, tmp_path / "run")
    kept: list[list[str]] = []
    real = loop_module.prune_checkpoints

    def pruned(run: RunFolder, saved: Position, keep: int) -> None:
        real(run, saved, keep)
        kept.append(sorted(path.name for path in run.checkpoints(saved.stage).iterdir()))

    monkeypatch.setattr(loop_module, "prune_checkpoints", pruned)
    config = small_config(data)
    config = replace(config, train=replace(config.train, keep_checkpoints=2))
    train_round(World(), str(run.root), config)
    steps = [[3], [3, 6], [6, 9], [12]]
    assert kept == [[f"step-{step:07d}" for step in found] for found in steps]


def test_a_start_that_was_superseded_saves_nothing(data: Path, begun: Path, tmp_path: Path) -> None:
    (run,) = copies(begun, tmp_path / "run")

    class StartedElsewhere(StopFlag):
        looks = 0

        @property
        def is_set(self) -> bool:
            self.looks += 1
            if self.looks == 2:
                Fence.raise_new(run)
            return False

    with pytest.raises(Stopped, match="a later one has begun"):
        do_tasks(run, small_config(data), World(), ("train round-00",), StartedElsewhere())
    assert not list(run.checkpoints("round-00").glob("step-*"))


def test_without_rounds_a_run_ends_with_the_first_labels(
    data: Path, begun: Path, tmp_path: Path
) -> None:
    (run,) = copies(begun, tmp_path / "run")
    do_tasks(run, small_config(data, rounds=0), World())
    assert run.evaluation("labels-round-00").exists()
    assert not run.checkpoints("round-00").exists()
    assert run.examples.exists()


def test_the_network_of_a_stage_is_let_go_before_the_next_task(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own collector may come much later, and a GPU holds no two of them."""
    nets: weakref.WeakSet[AuxSegNet] = weakref.WeakSet()
    alive: list[int] = []
    make, write = AuxSegNet.__init__, EventLog.write

    def noted(self: AuxSegNet, *args: Any, **named: Any) -> None:
        make(self, *args, **named)
        nets.add(self)

    def counted(self: EventLog, kind: str, **fields: Any) -> None:
        if kind == "task" and fields["what"] == "started":
            alive.append(len(nets))
        write(self, kind, **fields)

    monkeypatch.setattr(AuxSegNet, "__init__", noted)
    monkeypatch.setattr(EventLog, "write", counted)
    run = RunFolder(tmp_path)
    gc.disable()
    try:
        run_all(run, small_config(data), World(), StopFlag(), raise_fence(run, World()))
    finally:
        gc.enable()
    assert len(alive) > 8
    assert set(alive) == {0}


def test_a_batch_too_large_for_memory_is_said_with_what_mends_it(
    data: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    (run,) = copies(begun, tmp_path / "run")
    monkeypatch.setattr(DdpEngine, "accumulate", full)
    for micro_batch, cure in (
        (0, r"round-00: 4 crops of (\d+)x\1 pixels .* with --set train.micro_batch=2, which"),
        (1, r"round-00: 1 crops of .* fit into memory; begin a new run with"),
    ):
        config = small_config(data)
        config = replace(config, train=replace(config.train, micro_batch=micro_batch))
        with pytest.raises(ConfigError, match=cure):
            train_round(World(), str(run.root), config)


def test_an_unfinished_stage_is_not_taken_for_finished(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="round-00 is not finished yet"):
        final_checkpoint(RunFolder(tmp_path), 0)
