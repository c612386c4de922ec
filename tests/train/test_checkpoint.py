"""Checkpoints are whole or not there, and damage is noticed."""

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from auxdist.errors import CheckpointError, DataError
from auxdist.records import Position
from auxdist.runfolder import RunFolder, file_sha256, write_json
from auxdist.train import checkpoint as checkpoint_module
from auxdist.train.checkpoint import (
    latest_checkpoint,
    open_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from auxdist.train.engine import State


def state(value: float, elements: int = 4) -> State:
    return State({"w": torch.full((elements,), value)}, {"w": torch.full((elements,), -value)})


def test_a_saved_checkpoint_comes_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    save_checkpoint(run, Position(1, 7), 9, 3, state(2.0))
    found = latest_checkpoint(run, 1)
    assert found is not None
    assert (found.position, found.total_steps, found.quarantined) == (Position(1, 7), 9, 3)
    assert not found.is_final
    assert torch.equal(found.weights()["w"], torch.full((4,), 2.0))
    assert torch.equal(found.momentum()["w"], torch.full((4,), -2.0))
    assert latest_checkpoint(run, 2) is None


def test_equal_states_have_equal_bytes(tmp_path: Path) -> None:
    first = save_checkpoint(RunFolder(tmp_path / "a"), Position(0, 1), 1, 0, state(1.0))
    second = save_checkpoint(RunFolder(tmp_path / "b"), Position(0, 1), 1, 0, state(1.0))
    assert first.weights_sha256 == second.weights_sha256


@pytest.mark.parametrize("file", ["weights.safetensors", "momentum.safetensors"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "no manifest", "torn manifest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str, file: str) -> None:
    run = RunFolder(tmp_path)
    save_checkpoint(run, Position(0, 1), 9, 0, state(1.0))
    newest = save_checkpoint(run, Position(0, 2), 9, 0, state(2.0)).folder
    tensors, manifest = newest / file, newest / "manifest.json"
    content = tensors.read_bytes()
    if damage == "truncate":
        tensors.write_bytes(content[:-1])
    elif damage == "flip":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:20])
    with pytest.raises(CheckpointError, match=r"damaged|not a whole checkpoint"):
        open_checkpoint(newest)
    found = latest_checkpoint(run, 0)
    assert found is not None
    assert found.position.step == 1


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (save_checkpoint(run, Position(0, 1), 9, 0, state(1.0)).folder / "manifest.json").unlink()
    for cure in (r"Delete .*/round-00, and", r"rollback .* 0` sets the stage aside, and"):
        with pytest.raises(CheckpointError, match=rf"not a whole checkpoint(.|\n)*{cure}"):
            latest_checkpoint(run, 0)
        write_json(run.labels(0) / "manifest.json", {})


def test_a_checkpoint_that_the_file_system_refuses_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be read now may be whole: to go on from an older one would throw it away."""
    run = RunFolder(tmp_path)
    for step in (1, 2):
        newest = save_checkpoint(run, Position(0, step), 9, 0, state(1.0)).folder

    def stale(path: Path) -> str:
        if path.parent == newest:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return file_sha256(path)

    monkeypatch.setattr(checkpoint_module, "file_sha256", stale)
    with pytest.raises(
        DataError, match=r"step-0000002: cannot be read \(Stale file handle\); mend"
    ):
        latest_checkpoint(run, 0)
    monkeypatch.undo()
    found = latest_checkpoint(run, 0)
    assert found is not None
    assert found.position.step == 2


def test_pruning_keeps_what_was_saved_last_and_what_is_later(tmp_path: Path) -> None:
    """The later one is damaged, or by a newer start that went on meanwhile."""
    run = RunFolder(tmp_path)
    for step in (400, 500, 1000):
        damaged = save_checkpoint(run, Position(0, step), 2000, 0, state(1.0)).folder
    (damaged / "manifest.json").unlink()
    found = latest_checkpoint(run, 0)
    assert found is not None
    assert found.position.step == 500
    saved = save_checkpoint(run, Position(0, 600), 2000, 0, state(2.0))
    prune_checkpoints(run, saved.position, keep=1)
    assert sorted(run.checkpoints("round-00").iterdir()) == [saved.folder, damaged]


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    save_checkpoint(run, Position(0, 1), 9, 0, state(1.0))
    child = multiprocessing.get_context("fork").Process(target=_save_with_little_room, args=(run,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    found = latest_checkpoint(run, 0)
    assert found is not None
    assert found.position.step == 1
    assert not list(run.checkpoints("round-00").glob(".*"))


def _save_with_little_room(run: RunFolder) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        save_checkpoint(run, Position(0, 2), 9, 0, state(2.0, 100_000))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG, "may_pass in jobs/job.py looks at it"
    os._exit(0)


def test_all_files_of_a_checkpoint_are_for_those_for_whom_the_run_is(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = save_checkpoint(RunFolder(tmp_path), Position(0, 1), 9, 0, state(1.0)).folder
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


def test_a_writer_killed_at_any_time_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    context = multiprocessing.get_context("fork")
    for attempt in range(6):
        writer = context.Process(target=_save_forever, args=(run, attempt))
        writer.start()
        time.sleep(0.05 + 0.03 * attempt)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        for folder in run.checkpoints("round-00").glob("step-*"):
            open_checkpoint(folder)
    assert latest_checkpoint(run, 0) is not None
    newest = latest_checkpoint(run, 0)
    assert newest is not None
    prune_checkpoints(run, newest.position, keep=2)
    assert len(list(run.checkpoints("round-00").iterdir())) == 2


def _save_forever(run: RunFolder, attempt: int) -> None:
    for step in range(1000):
        save_checkpoint(run, Position(0, attempt * 1000 + step), 10**6, 0, state(1.0, 20_000))


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    folder = save_checkpoint(RunFolder(tmp_path), Position(-1, 5), 5, 0, state(1.0)).folder
    assert folder == tmp_path / "checkpoints" / "classifier" / "step-0000005"
    assert json.loads((folder / "manifest.json").read_text())["step"] == 5
