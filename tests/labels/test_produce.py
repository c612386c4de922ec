"""A round of labels: equal for any number of ranks, deaths and stops; nothing bad hides."""

import errno
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from labelmaker import (
    LABELS,
    PROVENANCE,
    PlainLabels,
    Slowed,
    damage_image,
    folder_bytes,
    make_round,
    tiny_net,
)
from ranks import run_ranks
from shardmaker import make_shards

from auxdist.data.index import Index, load_index
from auxdist.errors import AuxdistError, DataError, Stopped
from auxdist.labels import produce as produce_module
from auxdist.labels import store as store_module
from auxdist.labels.initial import InitialLabels
from auxdist.labels.manifest import MANIFEST_NAME, seal_path
from auxdist.labels.produce import LabelMaker
from auxdist.labels.refresh import RefinedLabels
from auxdist.labels.store import latest_round
from auxdist.labels.viewer import Viewer
from auxdist.runfolder import RunFolder
from auxdist.train.guard import Fence
from auxdist.world import World

NUM_SAMPLES, NUM_SHARDS = 12, 4


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("images")
    return make_shards(folder, NUM_SAMPLES, NUM_SHARDS, size=(33, 40))


@pytest.fixture(scope="module")
def expected(index: Index, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an undisturbed round, plainly made."""
    run = RunFolder(tmp_path_factory.mktemp("undisturbed"))
    make_round(run, index, PlainLabels())
    return folder_bytes(run.labels(0))


def real_rounds(run: RunFolder, index: Index, world: World, seconds: float = 0) -> list[int]:
    """First labels and one refresh by a real network; how many images of each this rank made."""
    viewer, made = Viewer(tiny_net()), []
    refreshing = replace(LABELS, saliency_crf=True)
    makers: list[LabelMaker] = [InitialLabels(viewer, LABELS), RefinedLabels(viewer, refreshing)]
    for round, maker in enumerate(makers):
        slowed = Slowed(maker, seconds)
        make_round(run, index, slowed, world=world, round=round)
        made.append(slowed.num_made)
    return made


def caught(function: Callable[[], Any]) -> str:
    """Type and text of the error that `function` raises."""
    try:
        function()
    except AuxdistError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def slow_on_rank_0(world: World) -> PlainLabels:
    """Rank 0 takes long for an image, so that every rank surely gets shards."""
    return PlainLabels(before=lambda _: time.sleep(0.5 if world.rank == 0 else 0.05))


def scenarios(world: World, root: Path, damaged: Path) -> dict[str, Any]:
    """What two ranks do together; a test below looks at each result."""
    index, bad = load_index(root / "images"), load_index(damaged)
    real = real_rounds(RunFolder(root / "real"), index, world, seconds=0.3)
    share = slow_on_rank_0(world)
    make_round(RunFolder(root / "shared"), index, share, world=world)
    stopped = caught(
        lambda: make_round(
            RunFolder(root / "stopped"),
            index,
            slow_on_rank_0(world),
            world=world,
            stop=lambda: world.rank == 0,
        )
    )
    over_budget = caught(
        lambda: make_round(
            RunFolder(root / "bad"), bad, slow_on_rank_0(world), world=world, budget=1
        )
    )
    finished = caught(
        lambda: make_round(RunFolder(root / "shared"), index, PlainLabels(), world=world)
    )
    (root / "shared/labels/round-00/img-000001.tar").unlink(missing_ok=True)
    world.barrier()
    refused = caught(
        lambda: store_module.open_labels(root / "shared/labels/round-00", index, world)
    )
    return {
        "real": real,
        "num_made": share.num_made,
        "stopped": stopped,
        "over_budget": over_budget,
        "finished": finished,
        "refused": refused,
    }


@pytest.fixture(scope="module")
def two_ranks(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("two")
    make_shards(root / "images", NUM_SAMPLES, NUM_SHARDS, size=(33, 40))
    bad = make_shards(root / "damaged", NUM_SAMPLES, NUM_SHARDS, size=(33, 40))
    damage_image(bad, 0, 0)
    damage_image(bad, 2, 1)
    return root, run_ranks(2, scenarios, root, root / "damaged")


def test_one_rank_and_two_ranks_give_the_same_bytes(
    two_ranks: tuple[Path, Any], index: Index, tmp_path: Path
) -> None:
    real_rounds(RunFolder(tmp_path), index, World())
    for round in (0, 1):
        assert all(0 < result["real"][round] < NUM_SAMPLES for result in two_ranks[1])
        one = folder_bytes(RunFolder(tmp_path).labels(round))
        assert one == folder_bytes(RunFolder(two_ranks[0] / "real").labels(round))
        assert len(one) == 3 * NUM_SHARDS + 1


def test_ranks_share_the_shards(two_ranks: tuple[Path, Any]) -> None:
    made = [result["num_made"] for result in two_ranks[1]]
    assert sum(made) == NUM_SAMPLES
    assert 0 < made[0] < made[1], "the faster rank does more"


def test_stop_on_one_rank_stops_all(
    two_ranks: tuple[Path, Any], expected: dict[str, bytes], index: Index
) -> None:
    root, results = two_ranks
    assert [result["stopped"].split(":")[0] for result in results] == ["Stopped", "Stopped"]
    run = RunFolder(root / "stopped")
    assert not (run.labels(0) / MANIFEST_NAME).exists()
    make_round(run, index, PlainLabels())
    assert folder_bytes(run.labels(0)) == expected


def test_too_many_unreadable_images_end_all_ranks(two_ranks: tuple[Path, Any]) -> None:
    for result in two_ranks[1]:
        text = result["over_budget"]
        assert text.startswith("DataError: labels of round 0: 2 images could not be read")
        assert "labels.bad_sample_budget is 1; mend the shards or raise the budget" in text


def test_finished_round_is_never_overwritten(two_ranks: tuple[Path, Any]) -> None:
    for result in two_ranks[1]:
        assert "this round of labels is finished and is never overwritten" in result["finished"]


def test_damage_that_one_rank_finds_is_an_error_on_all(two_ranks: tuple[Path, Any]) -> None:
    texts = sorted(result["refused"] for result in two_ranks[1])
    assert "img-000001.tar: its bytes are not those" in texts[0]
    assert "another rank met bad data" in texts[1]


def die_at(root: Path, images: Path, number: int) -> None:
    """Kill this process, as kill -9 does, before the image of that number."""

    def before(done: int) -> None:
        if done == number:
            os.kill(os.getpid(), signal.SIGKILL)

    make_round(RunFolder(root), load_index(images), PlainLabels(before))


def test_killed_and_restarted_equals_never_killed(
    index: Index, expected: dict[str, bytes], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=die_at, args=(tmp_path, index.root, 7))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    run = RunFolder(tmp_path)
    left = {path.name for path in run.labels(0).iterdir()}
    assert "img-000001.seal.json" in left
    assert any(name.endswith(".tmp") for name in left), "it died within a shard"
    maker = PlainLabels()
    make_round(run, index, maker)
    assert maker.num_made == NUM_SAMPLES - 6, "two shards of three images were finished"
    assert folder_bytes(run.labels(0)) == expected


@pytest.mark.parametrize("moment", ["write_seal", "publish_latest", "write_manifest"])
def test_death_between_any_two_files_changes_nothing(
    index: Index,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    module = store_module if moment == "write_seal" else produce_module
    with monkeypatch.context() as patch:
        patch.setattr(module, moment, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make_round(RunFolder(tmp_path), index, PlainLabels())
    make_round(RunFolder(tmp_path), index, PlainLabels())
    assert folder_bytes(RunFolder(tmp_path).labels(0)) == expected
    assert latest_round(RunFolder(tmp_path)) == 0


def truncate(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes()[:-600])


def change_byte(tar: Path) -> None:
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)


def remove_table(tar: Path) -> None:
    tar.with_suffix(".json").unlink()


def remove_seal(tar: Path) -> None:
    seal_path(tar).unlink()


def spoil_seal(tar: Path) -> None:
    seal_path(tar).write_text("{")


@pytest.mark.parametrize("harm", [truncate, change_byte, remove_table, remove_seal, spoil_seal])
def test_damaged_label_shard_is_made_anew_and_no_other(
    index: Index, expected: dict[str, bytes], tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    run = RunFolder(tmp_path)
    make_round(run, index, PlainLabels())
    (run.labels(0) / MANIFEST_NAME).unlink()
    harm(run.labels(0) / "img-000002.tar")
    maker = PlainLabels()
    make_round(run, index, maker)
    assert maker.num_made == 3
    assert folder_bytes(run.labels(0)) == expected


def test_shards_from_other_weights_are_made_anew(index: Index, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    make_round(run, index, PlainLabels())
    (run.labels(0) / MANIFEST_NAME).unlink()
    other = replace(PROVENANCE, weights_sha256="1" * 64)
    maker = PlainLabels()
    assert make_round(run, index, maker, provenance=other).provenance == other
    assert maker.num_made == NUM_SAMPLES


def test_shards_of_another_round_are_foreign(index: Index, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    make_round(run, index, PlainLabels())
    run.labels(0).rename(run.labels(1))
    (run.labels(1) / MANIFEST_NAME).unlink()
    maker = PlainLabels()
    make_round(run, index, maker, round=1)
    assert maker.num_made == NUM_SAMPLES
    assert latest_round(run) == 1


def test_making_an_older_round_anew_leaves_latest(index: Index, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    make_round(run, index, PlainLabels(), round=1)
    make_round(run, index, PlainLabels(), round=0)
    assert latest_round(run) == 1


def test_unreadable_images_within_the_budget_are_named(index: Index, tmp_path: Path) -> None:
    bad = make_shards(tmp_path / "images", NUM_SAMPLES, NUM_SHARDS, size=(33, 40))
    key = damage_image(bad, 3, 1)
    manifest = make_round(RunFolder(tmp_path / "run"), bad, PlainLabels(), budget=1)
    assert manifest.quarantined.keys() == {key}
    assert key in manifest.quarantined[key]


def test_what_was_unreadable_for_a_while_gets_its_labels_after_all(
    index: Index, tmp_path: Path
) -> None:
    shaken = make_shards(tmp_path / "images", NUM_SAMPLES, NUM_SHARDS, size=(33, 40))
    whole = {path: path.read_bytes() for path in shaken.root.glob("*.tar")}
    damage_image(shaken, 0, 1)
    damage_image(shaken, 1, 1)
    run = RunFolder(tmp_path / "run")
    with pytest.raises(DataError, match="2 images could not be read"):
        make_round(run, shaken, PlainLabels(), budget=1)
    for path, content in whole.items():
        path.write_bytes(content)
    assert make_round(run, shaken, PlainLabels(), budget=1).quarantined == {}


def test_quarantine_survives_a_restart(tmp_path: Path) -> None:
    bad = make_shards(tmp_path / "images", NUM_SAMPLES, NUM_SHARDS, size=(33, 40))
    keys = {damage_image(bad, 0, 1), damage_image(bad, 1, 1)}
    run = RunFolder(tmp_path / "run")
    with pytest.raises(DataError, match=r"2 images could not be read(?s:.*)img-00001.jpg"):
        make_round(run, bad, PlainLabels(), budget=1)
    assert not (run.labels(0) / MANIFEST_NAME).exists()
    assert make_round(run, bad, PlainLabels(), budget=2).quarantined.keys() == keys


def test_stop_leaves_finished_shards_and_nothing_half(
    index: Index, expected: dict[str, bytes], tmp_path: Path
) -> None:
    first, run = PlainLabels(), RunFolder(tmp_path)
    with pytest.raises(Stopped, match="labels of round 0: finished shards are saved; run again"):
        make_round(run, index, first, stop=lambda: first.num_made == 5)
    assert {path.name for path in run.labels(0).iterdir()} == {
        "img-000000.tar",
        "img-000000.json",
        "img-000000.seal.json",
    }
    second = PlainLabels()
    make_round(run, index, second)
    assert second.num_made == NUM_SAMPLES - 3
    assert folder_bytes(run.labels(0)) == expected


def test_shard_that_never_appears_names_the_disk(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(produce_module, "SHARED_DISK_S", 0.0)
    monkeypatch.setattr(store_module, "write_seal", lambda *_: None)
    with pytest.raises(DataError, match="is the run folder on a disk that all nodes share"):
        make_round(RunFolder(tmp_path), index, PlainLabels())


def test_an_image_too_large_for_memory_is_quarantined_by_name(index: Index, tmp_path: Path) -> None:
    calls = itertools.count()

    def full(_: int) -> None:
        if next(calls) in (4, 5):  # and when asked again
            raise torch.OutOfMemoryError("CUDA out of memory")

    found = make_round(RunFolder(tmp_path), index, PlainLabels(before=full), budget=1)
    [(key, reason)] = found.quarantined.items()
    assert reason.startswith(
        f"{key} (40x33 pixels): does not fit into memory; labels look at whole"
    )
    assert reason.endswith("begin a new run with smaller ones or data.image_scale.")


def test_a_start_that_was_superseded_finishes_no_shard_and_no_round(
    index: Index, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    fence = Fence.raise_new(run)

    def start_elsewhere(number: int) -> None:
        if number == 0:
            Fence.raise_new(run)

    left = run.labels(0) / ".img-000000.tar.of-the-newer-start.tmp"
    left.parent.mkdir(parents=True)
    left.touch()
    with pytest.raises(Stopped, match="start 1 of the run, but a later one has begun"):
        make_round(run, index, PlainLabels(before=start_elsewhere), require_newest=fence.check)
    assert list(run.labels(0).iterdir()) == [left]


def test_full_disk_is_an_error_of_the_user_not_a_traceback(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_module, "write_shard", full)
    with pytest.raises(DataError, match=r"img-000000.tar: cannot be written \(No space left"):
        make_round(RunFolder(tmp_path), index, PlainLabels())
