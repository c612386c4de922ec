"""Figures of a round against the round before, and labels that are not adopted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from labelmaker import LABELS, PlainLabels, folder_bytes, make_round, tiny_net
from ranks import run_ranks
from shardmaker import make_shards

from auxdist.config import GateConfig
from auxdist.data import reader
from auxdist.data.index import Index, load_index
from auxdist.data.reader import read_sample
from auxdist.errors import AuxdistError, Collapsed, DataError
from auxdist.labels.initial import InitialLabels
from auxdist.labels.manifest import (
    MANIFEST_NAME,
    REJECTED_NAME,
    Manifest,
    manifest_digest,
    read_manifest,
    read_rejected,
)
from auxdist.labels.refresh import RefinedLabels
from auxdist.labels.statistics import Changes
from auxdist.labels.store import latest_round, open_labels
from auxdist.labels.viewer import Viewer
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.observe.events import read_events
from auxdist.runfolder import RunFolder
from auxdist.world import World

EVERYTHING = 256
"""A darkness below which everything is ignored, but what is labelled as an object."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_shards(tmp_path_factory.mktemp("images"), 12, 4, size=(33, 40))


def begun(root: Path, index: Index) -> RunFolder:
    """A run with its first labels."""
    run = RunFolder(root)
    make_round(run, index, PlainLabels())
    return run


def test_changes_since_the_round_before_are_counted_exactly(index: Index, tmp_path: Path) -> None:
    run = begun(tmp_path, index)
    manifest = make_round(run, index, PlainLabels(dark=90), round=1)
    before, after = (open_labels(run.labels(round), index) for round in (0, 1))
    total = Changes.none(3)
    for shard in range(4):
        for sample in index.samples(shard):
            old = before.read_labels(shard, sample.key, "seg.png")
            new = after.read_labels(shard, sample.key, "seg.png")
            total += Changes.of(old, new, 3)
    assert manifest.statistics.changes == total
    assert total.pixels == 12 * 33 * 40
    assert total.lost[0] == total.gained[-1] > 0, "background became ignored"
    totals = [each.manifest.totals for each in (before, after)]
    assert totals[1].ignore - totals[0].ignore == total.gained[-1] - total.lost[-1]
    assert manifest.provenance.parent_sha256 == manifest_digest(run.labels(0))
    event = [record for record in read_events(run) if record["kind"] == "refresh"][-1]
    assert event["changed"] == total.changed / total.pixels
    assert event["lost"] == [count / total.pixels for count in total.lost]
    assert event["gained"] == [count / total.pixels for count in total.gained]
    assert event["ignore"] == totals[1].ignore / totals[1].pixels


def test_a_refresh_knows_how_its_affinities_were_mixed(index: Index, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first = make_round(run, index, InitialLabels(Viewer(tiny_net()), LABELS))
    second = make_round(run, index, RefinedLabels(Viewer(tiny_net()), LABELS), round=1)
    assert first.statistics.mixture.images == 0
    assert second.statistics.mixture.images == 12
    assert 0 < second.statistics.mixture.mean < 1
    assert second.statistics.mixture.std > 0
    for manifest in (first, second):
        agreement, totals = manifest.statistics.agreement, manifest.totals
        assert agreement.both == totals.objects
        assert agreement.neither == totals.background
        assert agreement.only_cam + agreement.only_saliency == totals.ignore


def test_shards_compared_with_other_labels_are_made_anew(index: Index, tmp_path: Path) -> None:
    run = begun(tmp_path, index)
    make_round(run, index, PlainLabels(), round=1)
    for round in (0, 1):
        (run.labels(round) / MANIFEST_NAME).unlink()
    for tar in run.labels(0).glob("*.tar"):
        tar.unlink()
    make_round(run, index, PlainLabels(dark=80))
    reader._opened.cache_clear()  # as in another process
    maker = PlainLabels()
    assert make_round(run, index, maker, round=1).statistics.changes.changed > 0
    assert maker.num_made == 12


def test_a_damaged_round_before_is_an_error_and_no_quarantine(index: Index, tmp_path: Path) -> None:
    run = begun(tmp_path, index)
    (run.labels(0) / "img-000001.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"round-00/img-000001\.tar: its bytes are not those"):
        make_round(run, index, PlainLabels(), round=1)


def test_without_the_round_before_nothing_is_compared(index: Index, tmp_path: Path) -> None:
    manifest = make_round(RunFolder(tmp_path), index, PlainLabels(dark=EVERYTHING), round=1)
    assert manifest.statistics.changes.pixels == 0
    assert manifest.provenance.parent_sha256 == ""


def collapsing(world: World, root: str, images: str) -> str:
    """Refresh to labels that collapse; type and text of the error."""
    maker = PlainLabels(dark=EVERYTHING)
    try:
        make_round(RunFolder(Path(root)), load_index(images), maker, world=world, round=1)
    except AuxdistError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_collapsed_labels_are_not_adopted_on_any_number_of_ranks(
    index: Index, tmp_path: Path
) -> None:
    run, two = begun(tmp_path / "one", index), begun(tmp_path / "two", index)
    text = collapsing(World(), str(run.root), str(index.root))
    assert text.startswith("Collapsed: labels of round 1 collapsed and are not adopted:\n")
    assert "  ignore takes over: " in text
    assert "The labels of round 0 stand. The rejected ones are in " in text
    assert "--set labels.gate.enabled=false" in text
    assert latest_round(run) == 0
    assert not (run.labels(1) / MANIFEST_NAME).exists()
    with pytest.raises(DataError, match=r"has no manifest\.json, so its labels are not finished"):
        open_labels(run.labels(1), index)

    texts = run_ranks(2, collapsing, str(two.root), str(index.root))
    assert texts[0] == text.replace(str(run.root), str(two.root))
    assert texts[1].startswith("PeerFailed: ")
    assert folder_bytes(two.labels(1)) == folder_bytes(run.labels(1))
    reasons = json.loads((run.labels(1) / REJECTED_NAME).read_text())["reasons"]
    assert [reason.split(":")[0] for reason in reasons] == ["ignore takes over"]
    assert read_rejected(run.labels(1)).statistics.totals.background == 0
    events = [record for record in read_events(run) if record["kind"] == "rejected"]
    assert [event["reasons"] for event in events] == [reasons]


def test_rejected_labels_can_be_adopted_without_making_them_anew(
    index: Index, tmp_path: Path
) -> None:
    run, free = begun(tmp_path / "gated", index), begun(tmp_path / "free", index)
    collapse = PlainLabels(dark=EVERYTHING)
    make_round(free, index, collapse, round=1, gate=GateConfig(enabled=False))
    for _ in range(2):
        with pytest.raises(Collapsed):
            make_round(run, index, collapse, round=1)
    make_round(run, index, collapse, round=1, gate=GateConfig(enabled=False))
    assert collapse.num_made == 2 * 12
    assert folder_bytes(run.labels(1)) == folder_bytes(free.labels(1))
    assert latest_round(run) == 1


def spoiled(name: str) -> AuxSegNet:
    """A network with a NaN among its weights."""
    net = tiny_net()
    with torch.no_grad():
        net.get_parameter(name).view(-1)[0] = float("nan")
    return net


@pytest.mark.parametrize(
    ("round", "make"),
    [
        (0, lambda: InitialLabels(Viewer(spoiled("fc8.weight")), LABELS)),
        (1, lambda: RefinedLabels(Viewer(spoiled("fc8.weight")), LABELS)),
        (1, lambda: RefinedLabels(Viewer(spoiled("sal_conv4.weight")), LABELS)),
        (1, lambda: RefinedLabels(Viewer(spoiled("cross_att.0.weight")), LABELS)),
    ],
)
def test_values_that_are_not_finite_stop_the_run_and_name_images(
    index: Index, tmp_path: Path, round: int, make: Callable[[], Any]
) -> None:
    run = begun(tmp_path, index) if round else RunFolder(tmp_path)
    with pytest.raises(
        Collapsed, match=r"is not finite \(NaN or infinite\)(?s:.*)img-0000"
    ) as told:
        make_round(run, index, make(), round=round)
    stand = "The labels of round 0 stand" if round else "There are no earlier ones"
    assert stand in str(told.value)
    assert latest_round(run) == (0 if round else None)
    manifest: Manifest = read_rejected(run.labels(round))
    assert 1 <= len(manifest.not_finite) == manifest.statistics.not_finite
    assert manifest.statistics.mixture.images == (12 - manifest.statistics.not_finite) * round


def test_who_adopts_values_that_are_not_finite_learns_the_saliency_as_it_was_given(
    index: Index, tmp_path: Path
) -> None:
    run, maker = RunFolder(tmp_path), InitialLabels(Viewer(spoiled("fc8.weight")), LABELS)
    make_round(run, index, maker, gate=GateConfig(enabled=False))
    labels = open_labels(run.labels(0), index)
    assert labels.manifest.not_finite
    for sample in index.samples(0):
        segmentation, saliency = labels.read(0, sample.key)
        assert (saliency == read_sample(index, 0, sample).saliency).all()
        if sample.key in labels.manifest.not_finite:
            assert (segmentation == 255).all()


def test_gate_is_part_of_no_byte(index: Index, tmp_path: Path) -> None:
    run, free = begun(tmp_path / "a", index), begun(tmp_path / "b", index)
    make_round(run, index, PlainLabels(), round=1)
    make_round(free, index, PlainLabels(), round=1, gate=GateConfig(enabled=False))
    assert folder_bytes(run.labels(1)) == folder_bytes(free.labels(1))
    assert read_manifest(run.labels(1)).statistics.changes.changed == 0
