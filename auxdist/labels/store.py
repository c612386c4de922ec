"""Label shards on disk: written one per image shard, accepted only where a round is finished.

Members of a sample: KEY.seg.png, palette PNG of 0 background, 1..C, 255 ignore; KEY.sal.png, 8-bit
saliency; KEY.json, numbers of pixels by label and by who saw an object; in round 0 KEY.cam.png too,
the labels that the CAMs alone would give, which are only measured. H W are the height and width of
the image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from auxdist.data.index import Index, Sample, read_table, table_path
from auxdist.data.reader import (
    check_size,
    decode_gray,
    decode_labels,
    encode_gray,
    encode_labels,
    read_member,
)
from auxdist.data.shardfile import SampleFacts, write_shard
from auxdist.errors import DataError
from auxdist.labels.manifest import (
    LabelShard,
    Manifest,
    Provenance,
    Seal,
    first_keys,
    read_manifest,
    read_seal,
    seal_path,
    write_seal,
)
from auxdist.labels.statistics import Agreement, Changes, Mixture, Statistics, Totals
from auxdist.records import IGNORE
from auxdist.runfolder import RunFolder, file_sha256, write_text
from auxdist.world import World

LabelMember = Literal["seg.png", "cam.png"]


@dataclass(frozen=True)
class LabelMaps:
    """The labels of one image.

    segmentation  (H, W) uint8: 0 background, 1..C, 255 ignore
    saliency      (H, W) uint8, 255 is certain
    cam           (H, W) uint8, labels by the CAMs alone, or None
    agreement     of the CAMs and the saliency
    mixture       of the affinities that refined the CAMs, where they were refined
    is_finite     False where the network gave NaN or infinity: such labels mean nothing
    """

    segmentation: np.ndarray
    saliency: np.ndarray
    cam: np.ndarray | None = None
    agreement: Agreement = field(default_factory=Agreement)
    mixture: Mixture = field(default_factory=Mixture)
    is_finite: bool = True

    @classmethod
    def ignored(cls, size: Sequence[int], with_cam: bool) -> LabelMaps:
        """Labels that say nothing of an image of `size` (H, W), with `cam` where it is due."""
        labels = np.full(size, IGNORE, dtype=np.uint8)
        return cls(labels, np.zeros_like(labels), labels if with_cam else None)

    @classmethod
    def not_finite(cls, saliency: np.ndarray, with_cam: bool = False) -> LabelMaps:
        """For an image of which the network gave NaN or infinity: `saliency` as it was given.

        So who adopts such labels all the same learns nothing that is not so.
        """
        ignored = cls.ignored(saliency.shape, with_cam)
        return replace(ignored, saliency=saliency, is_finite=False)


@dataclass(frozen=True)
class LabelSet:
    """The finished labels of a round, beside the image shards that they belong to."""

    folder: Path
    index: Index
    manifest: Manifest

    def read(self, shard: int, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) uint8 segmentation and (H, W) uint8 saliency of an image.

        Raises:
            DataError: the image could not be read when its labels were made, or they are damaged.
        """
        if key in self.manifest.quarantined:
            raise DataError(
                f"{self.folder}: {key} has no labels, its image could not be read when they were "
                f"made ({self.manifest.quarantined[key]})"
            )
        sample = self._sample(shard, key)
        saliency = decode_gray(self._bytes(shard, sample, "sal.png"), f"{key}.sal.png")
        check_size(saliency, (sample.height, sample.width), f"{key}.sal.png")
        return self.read_labels(shard, key, "seg.png"), saliency

    def read_labels(self, shard: int, key: str, member: LabelMember) -> np.ndarray:
        """(H, W) uint8 labels of an image; one that could not be read is all 255.

        Raises:
            DataError: the round has no such member, or it is damaged.
        """
        sample = self._sample(shard, key)
        labels = decode_labels(self._bytes(shard, sample, member), f"{key}.{member}")
        check_size(labels, (sample.height, sample.width), f"{key}.{member}")
        return labels

    def check_belongs(self) -> None:
        """Return if these are labels of the images in the index.

        Raises:
            DataError: they are of others.
        """
        images = [(image.file, image.sha256, image.num_samples) for image in self.index.shards]
        shards = self.manifest.shards
        if images != [(label.file, label.image_sha256, label.num_samples) for label in shards]:
            raise DataError(
                f"{self.folder}: labels of other images than those in {self.index.root}; give the "
                "folder of shards that the run began with, or begin a new run."
            )

    def _sample(self, shard: int, key: str) -> Sample:
        entry = self.manifest.shards[shard]
        samples = _by_key(table_path(self.folder / entry.file), entry.table_sha256)
        if key not in samples:
            raise DataError(
                f"{self.folder / entry.file}: has no labels of {key}; refresh them anew."
            )
        return samples[key]

    def _bytes(self, shard: int, sample: Sample, member: str) -> bytes:
        tar = self.folder / self.manifest.shards[shard].file
        if member not in sample.members:
            raise DataError(f"{tar}: has no {sample.key}.{member}; only round 0 has cam.png.")
        return read_member(tar, sample.members[member])


def open_labels(folder: Path, index: Index, world: World | None = None) -> LabelSet:
    """Accept a finished round of labels. All ranks call this; each checks its share of the bytes.

    Raises:
        DataError: on every rank, when the round is not finished, belongs to other images, or a
            file is damaged.
    """
    world = world or World()
    with world.failing_together():
        labels = LabelSet(folder, index, read_manifest(folder))
        labels.check_belongs()
        for entry in labels.manifest.shards[world.rank :: world.size]:
            if not _is_intact(folder / entry.file, entry):
                raise DataError(
                    f"{folder / entry.file}: its bytes are not those that manifest.json names. "
                    "Delete manifest.json, and complete.json of the run if there is one, and run "
                    "again: only damaged shards are made anew."
                )
    return labels


@dataclass
class _Tally:
    """What a seal says of the samples of a shard."""

    statistics: Statistics
    quarantined: dict[str, str] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ShardWriter:
    """Writes label tars of one round: `folder`, `round` and `provenance` are those of the round.

    `before` are the labels that the new ones are compared with, None where there are none.
    """

    folder: Path
    index: Index
    round: int
    provenance: Provenance
    before: LabelSet | None = None

    def sealed(self, shard: int) -> Seal | None:
        """The seal of a label shard that is whole and was made from the same things; else None."""
        tar = self.folder / self.index.shards[shard].file
        seal = self.seal(shard)
        return seal if seal is not None and _is_intact(tar, seal.shard) else None

    def seal(self, shard: int) -> Seal | None:
        """As `sealed`, but takes the tar's bytes on trust: for shards that were just checked."""
        image = self.index.shards[shard]
        seal = read_seal(self.folder / image.file)
        if seal is None or (seal.round, seal.provenance) != (self.round, self.provenance):
            return None
        same = (seal.shard.file, seal.shard.image_sha256) == (image.file, image.sha256)
        return seal if same else None

    def write(self, shard: int, make: Callable[[Sample], LabelMaps]) -> Seal:
        """Make the labels of a shard, write and seal them; what is there is replaced.

        An image for which `make` raises DataError gets a label that is all ignore, and is named
        in the seal. Any other error leaves the shard unsealed.

        Raises:
            DataError: the disk does not take it.
        """
        tar = self.folder / self.index.shards[shard].file
        try:
            return self._write(shard, tar, make)
        except OSError as error:
            raise DataError(
                f"{tar}: cannot be written ({error.strerror}); free space or mend the file system, "
                "then run again: finished shards are kept."
            ) from error

    def _write(self, shard: int, tar: Path, make: Callable[[Sample], LabelMaps]) -> Seal:
        seal_path(tar).unlink(missing_ok=True)
        tally = _Tally(Statistics.none(len(self.index.classes)))
        entry = write_shard(tar, self._contents(shard, make, tally))
        label_shard = LabelShard(
            entry.file,
            entry.bytes,
            entry.sha256,
            entry.num_samples,
            entry.table_sha256,
            image_sha256=self.index.shards[shard].sha256,
        )
        seal = Seal(
            self.round,
            self.provenance,
            label_shard,
            tally.statistics,
            tally.quarantined,
            first_keys(tally.not_finite),
        )
        write_seal(tar, seal)
        return seal

    def _contents(
        self, shard: int, make: Callable[[Sample], LabelMaps], tally: _Tally
    ) -> Iterator[tuple[str, Mapping[str, bytes], SampleFacts]]:
        for sample in self.index.samples(shard):
            try:
                maps = make(sample)
            except DataError as error:
                tally.quarantined[sample.key] = str(error)
                maps = LabelMaps.ignored((sample.height, sample.width), self.round == 0)
            tally.not_finite += [sample.key] * (not maps.is_finite)
            is_known = sample.key not in tally.quarantined and maps.is_finite
            before = self._before(shard, sample.key) if is_known else None
            tally.statistics += self._statistics(maps, before)
            facts = SampleFacts(sample.width, sample.height, sample.classes)
            yield sample.key, self._encode(maps), facts

    def _before(self, shard: int, key: str) -> np.ndarray | None:
        """(H, W) labels of an image in the round before; None where there are none."""
        if self.before is None or key in self.before.manifest.quarantined:
            return None
        return self.before.read_labels(shard, key, "seg.png")

    def _statistics(self, maps: LabelMaps, before: np.ndarray | None) -> Statistics:
        num_classes = len(self.index.classes)
        changes = Changes.none(num_classes)
        if before is not None:
            changes = Changes.of(before, maps.segmentation, num_classes)
        totals = Totals.of(maps.segmentation, num_classes)
        return Statistics(totals, changes, maps.agreement, maps.mixture, int(not maps.is_finite))

    def _encode(self, maps: LabelMaps) -> dict[str, bytes]:
        facts = {
            **asdict(Totals.of(maps.segmentation, len(self.index.classes))),
            "agreement": asdict(maps.agreement),
            "is_finite": maps.is_finite,
        }
        content = {
            "json": json.dumps(facts, sort_keys=True).encode(),
            "sal.png": encode_gray(maps.saliency),
            "seg.png": encode_labels(maps.segmentation, self.index.palette),
        }
        if maps.cam is not None:
            content["cam.png"] = encode_labels(maps.cam, self.index.palette)
        return content


def publish_latest(run: RunFolder, round: int) -> None:
    """Name the newest round of labels; making an older one anew changes nothing here.

    Comes before the manifest, so that a death in between leaves a round that is merely not
    finished, never a finished one that nobody is told of.
    """
    newest = latest_round(run)
    if newest is None or newest < round:
        write_text(run.latest_labels, f"{run.labels(round).name}\n")


def retract_latest(run: RunFolder, round: int) -> None:
    """Name the labels of `round` as the newest, where later ones are named that are gone."""
    newest = latest_round(run)
    if newest is not None and newest > round:
        write_text(run.latest_labels, f"{run.labels(round).name}\n")


def latest_round(run: RunFolder) -> int | None:
    """The newest round of labels, or None before the first; `open_labels` says if it is whole."""
    if not run.latest_labels.exists():
        return None
    return int(run.latest_labels.read_text().strip().removeprefix("round-"))


def _is_intact(tar: Path, entry: LabelShard) -> bool:
    try:
        if tar.stat().st_size != entry.bytes:
            return False
        found = (file_sha256(tar), file_sha256(table_path(tar)))
        return found == (entry.sha256, entry.table_sha256)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DataError(
            f"{tar}: cannot be read ({error.strerror}); mend the file system, then run again."
        ) from error


@lru_cache(maxsize=256)
def _by_key(table: Path, sha256: str) -> dict[str, Sample]:
    return {sample.key: sample for sample in read_table(table, sha256)}
