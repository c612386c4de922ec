"""Making a round of labels with all ranks: the common part of the first labels and of a refresh."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Protocol

import torch

from auxdist.config import GateConfig
from auxdist.data.index import Index, Sample
from auxdist.data.reader import SourceSample, read_sample
from auxdist.errors import Collapsed, DataError, Stopped
from auxdist.labels.gate import collapse
from auxdist.labels.lease import shards_to_do
from auxdist.labels.manifest import (
    MANIFEST_NAME,
    REJECTED_NAME,
    Manifest,
    Provenance,
    Seal,
    collect,
    manifest_digest,
    read_manifest,
    write_manifest,
    write_rejection,
)
from auxdist.labels.store import LabelMaps, LabelSet, ShardWriter, open_labels, publish_latest
from auxdist.memory import within_memory
from auxdist.observe.events import EventLog
from auxdist.runfolder import RunFolder
from auxdist.world import World

SHARED_DISK_S = 180.0
"""So long a network file system may take to show the main rank what another node wrote."""


class LabelMaker(Protocol):
    """Makes the labels of one image, from it alone: nothing may carry over to the next."""

    def make(self, source: SourceSample) -> LabelMaps:
        """The labels of an image.

        Raises:
            DataError: they cannot be made from what the sample has.
        """


@dataclass(frozen=True)
class Production:
    """A round of labels to be made: into which run, from which images, by whom, until when."""

    run: RunFolder
    world: World
    index: Index
    events: EventLog
    stop: Callable[[], bool]
    """Asked between images; once true on any rank, all ranks leave in order."""
    bad_sample_budget: int
    gate: GateConfig = field(default_factory=GateConfig)
    require_newest: Callable[[], None] = lambda: None
    """Raises Stopped where the run was started anew elsewhere; asked before each image, and
    before the round is finished."""


@dataclass
class _Done:
    """What this rank has behind it."""

    made: int = 0
    """Images of the shards that it made itself; those of an earlier start do not count."""
    quarantined: int = 0
    is_stopped: bool = False
    reasons: list[str] = field(default_factory=list)

    def add(self, seal: Seal) -> None:
        self.quarantined += len(seal.quarantined)
        self.reasons += seal.quarantined.values()


def produce(
    production: Production,
    round: int,
    provenance: Provenance,
    maker: LabelMaker,
    gamma: Mapping[str, float] = MappingProxyType({}),
) -> Manifest:
    """Make what is missing of a round of labels; all ranks call this and get the manifest.

    `gamma` are the gates of the network that makes them, for the manifest.

    Every file is the same, byte for byte, for any number of ranks (with equal threads each) and
    for any deaths in between.

    Raises:
        DataError: the round is finished already, more images than the budget could not be read,
            or shards are damaged; on every rank.
        Collapsed: the labels are not fit to be learned from; on the main rank, PeerFailed on the
            others. All shards and their figures are kept, but the round is not finished.
        Stopped: a stop was asked for; finished shards are kept and the same call goes on.
    """
    run, world = production.run, production.world
    _refuse_finished(production, round)
    before = _labels_before(production, round)
    if before is not None:
        provenance = replace(provenance, parent_sha256=manifest_digest(before.folder))
    writer = ShardWriter(run.labels(round), production.index, round, provenance, before)
    since = time.monotonic()
    with world.failing_together():
        done = _do_shards(production, writer, maker)
    made = _agree(production, round, done)
    with world.failing_together():
        if world.is_main:
            _finish(production, writer, gamma)
    manifest = read_manifest(run.labels(round))
    production.events.write(
        "refresh",
        round=round,
        images=production.index.num_samples,
        made=made,
        seconds=time.monotonic() - since,
        coverage=manifest.coverage,
        **manifest.statistics.summary(),
        gamma=manifest.gamma,
    )
    return manifest


def _refuse_finished(production: Production, round: int) -> None:
    # Only the main rank looks: on a network file system a rank that looked too early could go on
    # believing that a file is not there.
    run, world = production.run, production.world
    is_finished = world.is_main and (run.labels(round) / MANIFEST_NAME).exists()
    if world.from_main(int(is_finished)):
        raise DataError(
            f"{run.labels(round)}: this round of labels is finished and is never overwritten; "
            f"to make it anew delete its {MANIFEST_NAME} first, or begin a new run."
        )


def _labels_before(production: Production, round: int) -> LabelSet | None:
    """The labels of the round before, where they still exist; all ranks agree on that."""
    run, world = production.run, production.world
    if round == 0:
        return None
    folder = run.labels(round - 1)
    is_there = world.is_main and (folder / MANIFEST_NAME).exists()
    if not world.from_main(int(is_there)):
        return None
    return open_labels(folder, production.index, world)


def _do_shards(production: Production, writer: ShardWriter, maker: LabelMaker) -> _Done:
    done = _Done()
    leases = shards_to_do(production.world, "labels", len(production.index.shards))
    try:
        for shard in leases:
            seal = writer.sealed(shard)
            if seal is None or seal.quarantined:  # what was unreadable then may be readable now
                production.require_newest()  # before the seal is taken off
                seal = writer.write(shard, partial(_make, production, maker, shard))
                done.made += seal.shard.num_samples
            if seal.quarantined:
                production.events.write("quarantine", keys=list(seal.quarantined))
            done.add(seal)
            if done.quarantined > production.bad_sample_budget:
                break
    except Stopped:
        done.is_stopped = True
    finally:
        for _ in leases:  # what is left is for nobody: the other ranks end soon as well
            pass
    return done


def _make(production: Production, maker: LabelMaker, shard: int, sample: Sample) -> LabelMaps:
    if production.stop():
        raise Stopped
    production.require_newest()
    source = read_sample(production.index, shard, sample)
    advice = "labels look at whole images; begin a new run with smaller ones or data.image_scale"
    maps = within_memory(partial(maker.make, source), sample.key, source.image.shape, advice)
    production.world.tick()
    return maps


def _agree(production: Production, round: int, done: _Done) -> int:
    """Go on with all ranks, or stop with all; the images that all have made comes back."""
    mine = torch.tensor([done.made, done.quarantined, int(done.is_stopped)])
    made, quarantined, stopped = production.world.all_sum(mine).tolist()
    if quarantined > production.bad_sample_budget:
        examples = "\n".join(f"  {reason}" for reason in done.reasons[:5])
        raise DataError(
            f"labels of round {round}: {quarantined} images could not be read, the budget "
            f"labels.bad_sample_budget is {production.bad_sample_budget}; mend the shards or raise "
            f"the budget. The quarantine records in events/ name them. This rank met "
            f"{done.quarantined}:\n{examples}"
        )
    if stopped:
        production.require_newest()  # which says it better
        raise Stopped(f"labels of round {round}: finished shards are saved; run again to go on.")
    return int(made)


def _finish(production: Production, writer: ShardWriter, gamma: Mapping[str, float]) -> None:
    production.require_newest()
    for left in writer.folder.glob(".*.tmp"):  # by writers that died
        left.unlink(missing_ok=True)
    deadline = time.monotonic() + SHARED_DISK_S
    seals = (
        _await_seal(production, writer, s, deadline) for s in range(len(production.index.shards))
    )
    num_classes = len(production.index.classes)
    manifest = collect(writer.round, writer.provenance, num_classes, seals, gamma)
    _require_fit(production, writer, manifest)
    publish_latest(production.run, writer.round)
    write_manifest(writer.folder, manifest)


def _require_fit(production: Production, writer: ShardWriter, manifest: Manifest) -> None:
    before = writer.before.manifest.statistics if writer.before else None
    reasons = collapse(manifest.statistics, before, production.index.classes, production.gate)
    if not reasons:
        return
    write_rejection(writer.folder, manifest, reasons)
    round, examples = writer.round, ", ".join(manifest.not_finite[:5])
    production.events.write("rejected", round=round, reasons=reasons, keys=manifest.not_finite)
    stand = f"The labels of round {round - 1} stand." if round else "There are no earlier ones."
    raise Collapsed(
        f"labels of round {round} collapsed and are not adopted:\n"
        + "".join(f"  {reason}\n" for reason in reasons)
        + f"  first such images: {examples}\n" * bool(examples)
        + f"{stand} The rejected ones are in {writer.folder}, their figures in {REJECTED_NAME}; "
        f"see `auxdist labels list {production.run.root}`. Begin a new run with, for example, a "
        "lower learning rate, or adopt them all the same: give the same command again with "
        "--set labels.gate.enabled=false, which then holds for the later rounds of that start too."
    )


def _await_seal(production: Production, writer: ShardWriter, shard: int, deadline: float) -> Seal:
    production.world.tick()
    while (seal := writer.seal(shard)) is None:
        if time.monotonic() > deadline:
            raise DataError(
                f"{writer.folder / writer.index.shards[shard].file}: another rank finished it, but "
                f"it is not here after {SHARED_DISK_S:.0f} s; is the run folder on a disk that all "
                "nodes share?"
            )
        time.sleep(0.2)
    return seal
