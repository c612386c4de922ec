"""Label shards on disk: what readers accept, and what they refuse."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labelmaker import PROVENANCE, PlainLabels, damage_image, make_round
from shardmaker import keys_in, make_shards

from auxdist.config import Config, DataConfig, GateConfig, LabelsConfig, ModelConfig
from auxdist.data.index import Index
from auxdist.data.reader import read_sample
from auxdist.errors import DataError
from auxdist.labels.manifest import MANIFEST_NAME, Provenance, read_manifest, seal_path
from auxdist.labels.store import latest_round, open_labels
from auxdist.records import IGNORE
from auxdist.runfolder import RunFolder


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return make_shards(tmp_path / "images", num_samples=6, num_shards=2, size=(20, 24))


@pytest.fixture
def run(tmp_path: Path, index: Index) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    make_round(run, index, PlainLabels())
    return run


def test_labels_come_back_as_they_were_made(run: RunFolder, index: Index) -> None:
    labels = open_labels(run.labels(0), index)
    for shard in range(2):
        for sample in index.samples(shard):
            expected = PlainLabels().make(read_sample(index, shard, sample))
            segmentation, saliency = labels.read(shard, sample.key)
            assert (segmentation == expected.segmentation).all()
            assert (saliency == expected.saliency).all()
            assert (labels.read_labels(shard, sample.key, "cam.png") == expected.cam).all()


def test_manifest_names_every_shard_and_counts_every_pixel(run: RunFolder, index: Index) -> None:
    manifest = read_manifest(run.labels(0))
    labels = open_labels(run.labels(0), index)
    every = [
        labels.read(shard, sample.key)[0] for shard in range(2) for sample in index.samples(shard)
    ]
    counts = np.bincount(np.stack(every).ravel(), minlength=256)
    assert manifest.totals.pixels == 6 * 20 * 24
    assert manifest.totals.background == counts[0] > 0
    assert manifest.totals.ignore == counts[IGNORE] > 0
    assert manifest.totals.classes == tuple(counts[1:4].tolist())
    assert manifest.statistics.changes.pixels == 0, "there is no round before"
    assert manifest.coverage == 1 - counts[IGNORE] / counts.sum()
    assert [s.image_sha256 for s in manifest.shards] == [s.sha256 for s in index.shards]
    assert (manifest.round, manifest.parent_round) == (0, -1)
    assert manifest.provenance == PROVENANCE
    assert latest_round(run) == 0


def test_same_keys_in_the_same_order_as_the_images(run: RunFolder, index: Index) -> None:
    folder = run.labels(0)
    entries = read_manifest(folder).shards
    label_index = replace(
        index,
        root=folder,
        shards=tuple(
            replace(image, table_sha256=entry.table_sha256)
            for image, entry in zip(index.shards, entries, strict=True)
        ),
    )
    assert list(keys_in(label_index)) == list(keys_in(index))


def test_unfinished_folder_is_refused(run: RunFolder, index: Index) -> None:
    (run.labels(0) / MANIFEST_NAME).unlink()
    with pytest.raises(DataError, match=r"has no manifest.json, so its labels are not finished"):
        open_labels(run.labels(0), index)


def test_damaged_manifest_is_refused(run: RunFolder, index: Index) -> None:
    (run.labels(0) / MANIFEST_NAME).write_text('{"schema": 99}')
    with pytest.raises(DataError, match=r"is damaged or of another schema .*schema 99, expected 2"):
        open_labels(run.labels(0), index)


@pytest.mark.parametrize("name", ["img-000001.tar", "img-000001.json"])
def test_changed_byte_is_refused(run: RunFolder, index: Index, name: str) -> None:
    path = run.labels(0) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"img-000001.tar: its bytes are not those"):
        open_labels(run.labels(0), index)


def test_missing_shard_is_refused(run: RunFolder, index: Index) -> None:
    (run.labels(0) / "img-000000.tar").unlink()
    with pytest.raises(DataError, match=r"img-000000.tar: its bytes are not those"):
        open_labels(run.labels(0), index)


def test_labels_of_other_images_are_refused(run: RunFolder, tmp_path: Path) -> None:
    other = make_shards(tmp_path / "other", num_samples=6, num_shards=2, size=(20, 24), seed=1)
    with pytest.raises(DataError, match="labels of other images than those in"):
        open_labels(run.labels(0), other)


def test_key_or_member_that_is_not_there_is_named(run: RunFolder, index: Index) -> None:
    labels = open_labels(run.labels(0), index)
    with pytest.raises(DataError, match=r"img-000000.tar: has no labels of nobody"):
        labels.read(0, "nobody")
    with pytest.raises(DataError, match=r"has no img-00000.gt.png; only round 0 has cam.png"):
        labels.read_labels(0, "img-00000", "gt.png")  # type: ignore[arg-type]


def test_image_that_cannot_be_read_has_no_labels(tmp_path: Path, index: Index) -> None:
    key = damage_image(index, shard=1, number=0)
    run = RunFolder(tmp_path / "run")
    manifest = make_round(run, index, PlainLabels())
    assert list(manifest.quarantined) == [key]
    labels = open_labels(run.labels(0), index)
    assert (labels.read_labels(1, key, "seg.png") == IGNORE).all()
    with pytest.raises(DataError, match=f"{key} has no labels, its image could not be read"):
        labels.read(1, key)


def test_provenance_follows_what_changes_labels_and_nothing_else() -> None:
    def of(config: Config) -> Provenance:
        return Provenance.of(config, "0" * 64)

    assert of(Config(labels=LabelsConfig(cam_threshold=0.3))) != PROVENANCE
    assert of(Config(model=ModelConfig(method="auxsegnet"))) != PROVENANCE
    assert of(Config(data=DataConfig(image_scale=0.5))) != PROVENANCE
    assert Provenance.of(Config(), "1" * 64) != PROVENANCE
    assert of(Config(name="other", seed=3)) == PROVENANCE
    assert of(Config(labels=LabelsConfig(bad_sample_budget=3))) == PROVENANCE
    assert of(Config(labels=LabelsConfig(gate=GateConfig(enabled=False)))) == PROVENANCE
    assert of(Config(model=ModelConfig(weights="start.pth"))) == PROVENANCE


def test_seal_lies_beside_its_tar(run: RunFolder) -> None:
    assert seal_path(run.labels(0) / "img-000000.tar").exists()
