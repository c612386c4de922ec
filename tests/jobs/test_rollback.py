"""Back to earlier labels: nothing is lost, any death is survived, the same bytes come again."""

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
from labelmaker import PlainLabels, make_round
from shardmaker import make_shards
from smallrun import do_tasks, file_bytes, make_data, small_config

from auxdist.config import Config
from auxdist.data.index import Index
from auxdist.errors import Collapsed, DataError, LaunchError
from auxdist.jobs import rollback, submit
from auxdist.jobs.rollback import roll_back
from auxdist.labels.manifest import REJECTED_NAME
from auxdist.labels.store import latest_round
from auxdist.observe.events import read_events
from auxdist.runfolder import RunFolder, write_json, write_text
from auxdist.train.guard import current_incarnation
from auxdist.world import World

KEPT = ("labels", "checkpoints", "evaluation")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("data")
    make_data(root)
    return small_config(root, rounds=2, epochs=1)


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunFolder(tmp_path_factory.mktemp("runs") / "finished")
    do_tasks(run, config, World())
    write_json(run.complete, {})
    return run.root


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(finished, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def product(root: Path) -> dict[str, bytes]:
    """Labels, checkpoints and measurements of a run."""
    found: dict[str, bytes] = {}
    for name in KEPT:
        found |= {f"{name}/{path}": content for path, content in file_bytes(root / name).items()}
    return found


def rounds_on_disk(run: RunFolder) -> dict[str, list[str]]:
    return {name: sorted(p.name for p in (run.root / name).glob("*round-*")) for name in KEPT}


def test_what_came_after_is_set_aside_and_nothing_else(run: RunFolder) -> None:
    before = product(run.root)
    folder = roll_back(run, 1)
    assert folder is not None
    assert folder.parent == run.set_aside
    assert rounds_on_disk(run) == {
        "labels": ["round-00", "round-01"],
        "checkpoints": ["round-00"],
        "evaluation": [
            "cam-round-00.json",
            "labels-round-00.json",
            "labels-round-01.json",
            "val-round-00.json",
        ],
    }
    assert run.latest_labels.read_text() == "round-01\n"
    assert not run.complete.exists()
    assert (folder / "complete.json").exists()
    moved = product(folder)
    assert "labels/latest" not in moved
    assert product(run.root) | moved == before | {"labels/latest": b"round-01\n"}
    assert not product(run.root).keys() & moved.keys()
    assert [r["round"] for r in read_events(run) if r["kind"] == "rollback"] == [1]
    assert roll_back(run, 1) is None, "nothing is left to set aside"


@pytest.mark.parametrize("round", [0, 1])
def test_the_same_command_trains_anew_and_ends_with_the_same_bytes(
    run: RunFolder, finished: Path, config: Config, round: int
) -> None:
    roll_back(run, round)
    do_tasks(run, config, World())
    assert product(run.root) == product(finished)


class Death(BaseException):
    """As kill -9: nothing after it is done."""


def die_after(patch: pytest.MonkeyPatch, moves: int) -> None:
    """Let a rollback die after so many renames, before anything else that it does."""
    left, rename = iter(range(moves)), os.rename

    def mortal(source: Path, target: Path) -> None:
        if next(left, None) is None:
            raise Death
        rename(source, target)

    patch.setattr(rollback.os, "rename", mortal)


@pytest.mark.parametrize("moves", range(9))
def test_a_rollback_that_died_is_finished_by_the_same_call(
    run: RunFolder, finished: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    with monkeypatch.context() as patch:
        die_after(patch, moves)
        with pytest.raises(Death):
            roll_back(run, 0)
    roll_back(run, 0)
    assert rounds_on_disk(run) == {
        "labels": ["round-00"],
        "checkpoints": [],
        "evaluation": ["cam-round-00.json", "labels-round-00.json"],
    }
    assert run.latest_labels.read_text() == "round-00\n"
    moved: dict[str, bytes] = {}
    for folder in run.set_aside.iterdir():
        assert not moved.keys() & product(folder).keys()
        moved |= product(folder)
    latest = {"labels/latest": b"round-00\n"}
    assert product(run.root) | moved == product(finished) | latest


@pytest.mark.parametrize("moves", [1, 3, 6])
def test_a_start_after_a_rollback_that_died_goes_on_from_what_is_left(
    run: RunFolder,
    finished: Path,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    moves: int,
) -> None:
    with monkeypatch.context() as patch:
        die_after(patch, moves)
        with pytest.raises(Death):
            roll_back(run, 0)
    do_tasks(run, config, World())
    assert product(run.root) == product(finished)


def test_an_earlier_start_of_the_run_is_fenced_off(run: RunFolder) -> None:
    before = current_incarnation(run)
    roll_back(run, 0)
    assert current_incarnation(run) == before + 1


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_shards(tmp_path_factory.mktemp("images"), 4, 2, size=(20, 24))


def test_rejected_labels_are_set_aside_with_the_failure(index: Index, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    make_round(run, index, PlainLabels())
    with pytest.raises(Collapsed):
        make_round(run, index, PlainLabels(dark=256), round=1)
    write_json(run.failure, {"message": "collapsed"})
    folder = roll_back(run, 0)
    assert folder is not None
    assert (folder / "labels" / "round-01" / REJECTED_NAME).exists()
    assert json.loads((folder / "failure.json").read_text()) == {"message": "collapsed"}
    assert not run.labels(1).exists()
    assert latest_round(run) == 0


def test_labels_that_are_not_finished_are_nothing_to_go_on_from(
    index: Index, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    make_round(run, index, PlainLabels())
    with pytest.raises(DataError, match=r"round-03: has no manifest\.json"):
        roll_back(run, 3)


def test_a_run_that_is_going_on_is_left_alone(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    make_round(run, index, PlainLabels())
    run.launch.mkdir()
    with (run.launch / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LaunchError, match=r"another launcher is at work in this folder"):
            roll_back(run, 0)
    write_text(run.launch / "jobs.jsonl", '{"job_id": "7"}\n')
    monkeypatch.setattr(submit, "job_state", lambda job: "PENDING")
    with pytest.raises(LaunchError, match="job 7 of this run is PENDING; wait for it, or end it"):
        roll_back(run, 0)


def test_a_file_system_that_refuses_is_named(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    for round in (0, 1):
        make_round(run, index, PlainLabels(), round=round)

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(rollback.os, "rename", refuse)
    with pytest.raises(DataError, match=r"round-01: cannot be moved to .*\(Invalid cross-device"):
        roll_back(run, 0)
    assert run.labels(1).exists()
