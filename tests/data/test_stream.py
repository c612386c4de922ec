"""The training stream: the same global batches for any ranks, workers and restarts."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shardmaker import draw_scene, keys_in, make_palette, make_shards

import auxdist.data.stream as stream_module
from auxdist.config import CropConfig, DataConfig
from auxdist.data.index import Index, Sample, table_path
from auxdist.data.plan import Plan
from auxdist.data.stream import batches
from auxdist.errors import DataError, NodeFault
from auxdist.records import Batch

NUM_SAMPLES, GLOBAL_BATCH = 19, 6
DATA = DataConfig(workers=0, crop=CropConfig(size=40))
SIZE = (48, 36)


class DrawnLabels:
    """Labels of the shard maker's scenes, as a label set would give them."""

    def read(self, shard: int, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Segmentation and saliency map of a sample."""
        labels = draw_scene(int(key.removeprefix("img-")), 3, SIZE, 0)[1]
        return labels, np.where(labels > 0, 255, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """19 samples in 4 shards."""
    return make_shards(tmp_path_factory.mktemp("shards"), NUM_SAMPLES, 4, size=SIZE)


def make_plan(index: Index, labelled_only: bool = False, **changes: Any) -> Plan:
    """Two epochs of padded batches."""
    values: dict[str, Any] = {
        "seed": 0,
        "round": 1,
        "epochs": 2,
        "global_batch": GLOBAL_BATCH,
        "shuffle_shards": 2,
        "last_batch": "pad",
    }
    return Plan(index.shard_sizes(labelled_only), **(values | changes))


def stream(index: Index, data: DataConfig = DATA, **changes: Any) -> Iterator[Batch]:
    """Batches of the default plan with drawn labels."""
    return batches(index, make_plan(index), data, DrawnLabels(), **changes)


def global_batches(index: Index, size: int, workers: int) -> list[dict[str, np.ndarray]]:
    """What `size` ranks get together, step by step, without filling beyond the global batch."""
    data = replace(DATA, workers=workers)
    ranks = [list(stream(index, data, rank=rank, size=size)) for rank in range(size)]
    return [_joined(step, GLOBAL_BATCH) for step in zip(*ranks, strict=True)]


def _joined(parts: tuple[Batch, ...], rows: int) -> dict[str, np.ndarray]:
    names = [name for name, value in vars(parts[0]).items() if isinstance(value, torch.Tensor)]
    joined = {n: np.concatenate([getattr(p, n).numpy() for p in parts])[:rows] for n in names}
    return joined | {"keys": np.asarray([key for p in parts for key in p.keys][:rows])}


def _assert_equal(one: list[dict[str, np.ndarray]], two: list[dict[str, np.ndarray]]) -> None:
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize(("size", "workers"), [(1, 1), (1, 3), (2, 0), (2, 3), (4, 0), (4, 1)])
def test_ranks_and_workers_do_not_change_the_global_batches(
    index: Index, size: int, workers: int
) -> None:
    expected = global_batches(index, size=1, workers=0)
    _assert_equal(global_batches(index, size, workers), expected)


@pytest.mark.parametrize("first_step", [0, 1, 4, 7, 8])
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_tail(index: Index, first_step: int, workers: int) -> None:
    whole = [_joined((batch,), GLOBAL_BATCH) for batch in stream(index)]
    tail = stream(index, replace(DATA, workers=workers), first_step=first_step)
    _assert_equal([_joined((batch,), GLOBAL_BATCH) for batch in tail], whole[first_step:])


def test_every_sample_exactly_once_an_epoch(index: Index) -> None:
    keys = [[key for key in batch.keys if key] for batch in stream(index)]
    assert len(keys) == 8
    for epoch in (keys[:4], keys[4:]):
        assert sorted(key for step in epoch for key in step) == sorted(keys_in(index))


def test_samples_without_classes_can_be_left_out(index: Index) -> None:
    data = replace(DATA, skip_unlabelled=True)
    plan = make_plan(index, labelled_only=True, epochs=1)
    found = list(batches(index, plan, data, DrawnLabels()))
    rows = torch.cat([batch.classes for batch in found])
    weight = torch.cat([batch.weight for batch in found])
    assert int(weight.sum()) == index.num_labelled == 17
    assert (rows[weight > 0].sum(1) > 0).all()
    keys = {key for batch in found for key in batch.keys if key}
    assert len(keys) == 17


def test_rows_that_only_fill_up_count_for_nothing(index: Index) -> None:
    *_, last = stream(index)
    assert last.keys[0] != ""
    assert last.keys[1:] == ("",) * 5
    assert last.weight.tolist() == [1, 0, 0, 0, 0, 0]
    assert (last.segmentation[1:] == 255).all()
    assert (last.saliency[1:] == 255).all()
    assert not last.image[1:].any()
    assert not last.extent[1:].any()


def test_a_world_larger_than_the_batch_gets_filling(index: Index) -> None:
    counts = [len(list(stream(index, rank=rank, size=8))) for rank in (0, 7)]
    assert counts == [8, 8]
    assert next(stream(index, rank=7, size=8)).keys == ("",)


def test_a_batch_holds_what_its_sample_shows(index: Index) -> None:
    batch = next(stream(index))
    shapes = {name: tuple(v.shape) for name, v in vars(batch).items() if hasattr(v, "shape")}
    assert shapes == {
        "image": (6, 3, 40, 40),
        "extent": (6, 2),
        "classes": (6, 3),
        "segmentation": (6, 40, 40),
        "saliency": (6, 40, 40),
        "weight": (6,),
        "noise": (6,),
    }
    samples = {s.key: s for shard in range(4) for s in index.samples(shard)}
    for row, key in enumerate(batch.keys):
        present = batch.classes[row].nonzero().flatten().tolist()
        assert tuple(present) == samples[key].classes
        assert {1 + c for c in present} >= set(batch.segmentation[row].unique().tolist()) - {0, 255}


def test_image_labels_and_saliency_of_a_row_are_of_one_place_in_one_sample(index: Index) -> None:
    palette, seen = np.asarray(make_palette(3), dtype=float), 0
    for batch in stream(index):
        for row in range(len(batch.keys)):
            image, labels = batch.image[row].numpy(), batch.segmentation[row].numpy()
            for c in batch.classes[row].nonzero().flatten().tolist():
                inside = labels == c + 1
                if inside.sum() < 40:  # too few to have a colour
                    continue
                seen += 1
                colour = np.median(image[:, inside], axis=1)
                np.testing.assert_allclose(colour, 0.8 * palette[c + 1] + 0.2 * 90, atol=16)
                assert (batch.saliency[row].numpy()[inside] == 1).mean() > 0.95
            background = labels == 0
            background[batch.extent[row][0] :] = background[:, batch.extent[row][1] :] = False
            if background.any():
                assert (batch.saliency[row].numpy()[background] == 0).mean() > 0.95
    assert seen > 30


def test_a_sample_is_drawn_anew_in_every_epoch_and_round(index: Index) -> None:
    data = replace(DATA, crop=CropConfig(size=24, scale_min=1, scale_max=1))
    drawn = []
    for round in (1, 2):
        rows: dict[str, list[bytes]] = {}
        for batch in batches(index, make_plan(index, round=round), data, DrawnLabels()):
            for key, image in zip(batch.keys, batch.image, strict=True):
                rows.setdefault(key, []).append(image.numpy().tobytes())
        drawn.append({key: images for key, images in rows.items() if key})
    first, second = drawn
    assert all(len(images) == 2 for images in first.values())
    assert sum(one != two for one, two in first.values()) > 15
    assert sum(first[key][0] != second[key][0] for key in first) > 15


def test_resuming_reads_no_sample_of_before(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = stream_module.read_image

    def counted(index: Index, shard: int, sample: Sample) -> np.ndarray:
        read.append(sample.key)
        return real(index, shard, sample)

    monkeypatch.setattr(stream_module, "read_image", counted)
    rest = list(stream(index, first_step=7))
    assert read == [key for batch in rest for key in batch.keys if key]


def test_a_global_batch_has_one_scale_or_each_sample_its_own(index: Index) -> None:
    crop = replace(DATA.crop, size=100)  # so that extent is the whole resized image
    together = next(stream(index, replace(DATA, crop=crop)))
    assert len(together.extent.unique(dim=0)) == 1
    other_rank = next(stream(index, replace(DATA, crop=crop), rank=1, size=2))
    assert other_rank.extent[0].tolist() == together.extent[0].tolist()
    each = next(stream(index, replace(DATA, crop=replace(crop, scale_per="sample"))))
    assert len(each.extent.unique(dim=0)) > 1


def test_image_scale_multiplies_whatever_scale_was_drawn(index: Index) -> None:
    crop = replace(DATA.crop, size=100)
    whole, half = (
        next(stream(index, replace(DATA, crop=crop, image_scale=scale))).extent
        for scale in (1.0, 0.5)
    )
    assert (2 * half - whole).abs().max() <= 1  # rounded


def test_padding_is_ignored_where_the_switch_says_so(index: Index) -> None:
    for pad_label in (0, 255):
        crop = replace(DATA.crop, size=100, pad_label=pad_label)
        batch = next(stream(index, replace(DATA, crop=crop)))
        height, width = batch.extent[0].tolist()
        for labels in (batch.segmentation, batch.saliency):
            assert (labels[0, height:] == pad_label).all()
            assert (labels[0, :, width:] == pad_label).all()
        assert not batch.image[0, :, height:].any()
        assert not batch.image[0, :, :, width:].any()


def test_noise_differs_by_sample_and_epoch(index: Index) -> None:
    noise: dict[str, set[int]] = {}
    for batch in stream(index):
        for key, value in zip(batch.keys, batch.noise.tolist(), strict=True):
            noise.setdefault(key, set()).add(value)
    assert noise.pop("") == {0}
    assert all(len(values) == 2 for values in noise.values())
    assert len(set.union(*noise.values())) == 2 * NUM_SAMPLES


def test_the_classifier_stage_has_no_dense_labels(index: Index) -> None:
    batch = next(batches(index, make_plan(index, round=-1), DATA, None))
    assert (batch.segmentation == 255).all()
    assert (batch.saliency == 255).all()
    assert batch.weight.sum() == GLOBAL_BATCH


def _damage(index: Index, shard: int, sample: int) -> str:
    chosen = index.samples(shard)[sample]
    member = chosen.members["jpg"]
    with (index.root / index.shards[shard].file).open("r+b") as stream:
        stream.seek(member.offset)
        stream.write(b"\0" * member.size)
    return chosen.key


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_samples_are_quarantined_by_key(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    index = make_shards(tmp_path, NUM_SAMPLES, 4, size=SIZE)
    bad = {_damage(index, 0, 2), _damage(index, 3, 1)}
    with caplog.at_level(logging.WARNING):
        found = list(stream(index, replace(DATA, workers=workers)))
    assert sorted(k for batch in found for k in batch.quarantined) == sorted([*bad, *bad])
    for batch in found:
        for row, key in enumerate(batch.keys):
            assert bool(batch.weight[row]) == (key not in {"", *bad})
            if key in bad:
                assert (batch.segmentation[row] == 255).all()
                assert not batch.classes[row].any()
    if not workers:
        assert "left out a training sample: img-00002.jpg: " in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lost_file_system_is_no_fault_of_the_samples(
    index: Index, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(NodeFault, match=r"\.tar: cannot be read \(Stale file handle\)"):
        next(stream(index, replace(DATA, workers=workers)))


def test_labels_of_another_size_are_quarantined(index: Index) -> None:
    class WrongLabels(DrawnLabels):
        def read(self, shard: int, key: str) -> tuple[np.ndarray, np.ndarray]:
            labels, saliency = super().read(shard, key)
            return labels[1:], saliency

    batch = next(batches(index, make_plan(index), DATA, WrongLabels()))
    assert len(batch.quarantined) == GLOBAL_BATCH


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_table_ends_the_stream(tmp_path: Path, workers: int) -> None:
    index = make_shards(tmp_path, NUM_SAMPLES, 1, size=SIZE)
    table_path(index.root / index.shards[0].file).write_text("{}")
    with pytest.raises(DataError, match=r"^\S*img-000000\.json: its sha256 is"):
        next(stream(index, replace(DATA, workers=workers)))
    _assert_no_children()


def test_a_killed_worker_is_an_error_not_a_hang(index: Index) -> None:
    endless = make_plan(index, epochs=10_000)
    running = batches(index, endless, replace(DATA, workers=2), DrawnLabels())
    next(running)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a reader process died .*Lower data\.workers"):
        _read(running, 100)
    _assert_no_children()


def test_signals_to_the_job_do_not_end_the_workers(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(worker: int, prepare: Callable[[int], None] = stream_module._prepare_worker) -> None:
        time.sleep(0.5 * worker)
        prepare(worker)

    monkeypatch.setattr(stream_module, "_prepare_worker", slowly)
    running = stream(index, replace(DATA, workers=2))
    next(running)  # of worker 0, while worker 1 still starts
    for process in multiprocessing.active_children():
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            os.kill(process.pid or 0, name)
    assert len(list(running)) == 7
    _assert_no_children()


def test_closing_early_leaves_no_process(index: Index) -> None:
    running = stream(index, replace(DATA, workers=2))
    next(running)
    assert len(multiprocessing.active_children()) == 2
    running.close()  # type: ignore[attr-defined]
    _assert_no_children()


def test_the_training_process_keeps_its_own_signal_handlers(index: Index) -> None:
    numbers = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    running = stream(index, replace(DATA, workers=1))
    next(running)
    assert [signal.getsignal(number) for number in numbers] == before
    running.close()  # type: ignore[attr-defined]


CRASH = """
from dataclasses import replace
from auxdist.data.index import load_index
import test_stream
running = test_stream.stream(load_index({root!r}), replace(test_stream.DATA, workers=1))
next(running)
raise SystemError("a crash")
"""


def test_a_crash_of_the_training_process_does_not_hang(index: Index) -> None:
    code = CRASH.format(root=str(index.root))
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent, here.parents[1])))
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "SystemError: a crash" in result.stderr


def _read(running: Iterator[Batch], steps: int) -> None:
    for _ in range(steps):
        next(running)


def _assert_no_children() -> None:
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []
