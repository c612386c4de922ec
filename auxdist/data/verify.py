"""Is a folder of image shards what its index says? Reads and decodes every byte."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from tabulate import tabulate

from auxdist.data.index import Index, Sample
from auxdist.data.pool import Tick, run_tasks
from auxdist.data.reader import read_ground_truth, read_member, read_sample
from auxdist.data.shardfile import read_members
from auxdist.errors import DataError
from auxdist.records import IGNORE
from auxdist.runfolder import file_sha256


@dataclass(frozen=True)
class Findings:
    """What was checked, images of every class, and every fault found."""

    index: Index
    num_samples: int
    num_unlabelled: int
    images_of_class: Counter[int]
    problems: tuple[str, ...]

    def describe(self) -> str:
        """A summary to print."""
        index = self.index
        rows = [(name, self.images_of_class[c]) for c, name in enumerate(index.classes)]
        megabytes = sum(shard.bytes for shard in index.shards) / 1e6
        lines = [
            f"{index.root}: {self.num_samples} images in {len(index.shards)} shards, "
            f"{megabytes:.1f} MB, {self.num_unlabelled} without a class, "
            f"ground truth: {'yes' if index.ground_truth else 'no'}, saliency: {index.saliency}",
            tabulate(rows, headers=("class", "images")),
            *self.problems,
            f"{len(self.problems)} problems" if self.problems else "Sound.",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Checked:
    """The outcome for one shard."""

    keys: tuple[str, ...]
    num_unlabelled: int
    images_of_class: Counter[int]
    problems: tuple[str, ...]


def verify(index: Index, processes: int, progress: Callable[[int], object]) -> Findings:
    """Check every shard of an index; faults are collected, none is raised.

    Raises:
        Stopped: asked to stop.
    """
    # Each worker is sent its own shard only: an index may list many thousands.
    tasks = [(replace(index, shards=(shard,)), 0) for shard in index.shards]
    keys: Counter[str] = Counter()
    images_of_class: Counter[int] = Counter()
    num_unlabelled = 0
    problems: list[str] = []
    for checked in run_tasks(_check_shard, tasks, processes, progress):
        keys.update(checked.keys)
        images_of_class.update(checked.images_of_class)
        num_unlabelled += checked.num_unlabelled
        problems += checked.problems
    problems += [f"sample key {key!r} comes {n} times" for key, n in keys.items() if n > 1]
    return Findings(index, keys.total(), num_unlabelled, images_of_class, tuple(sorted(problems)))


def _check_shard(task: tuple[Index, int], tick: Tick) -> _Checked:
    index, shard = task
    problems = list(_file_problems(index, shard))
    try:
        samples = index.samples(shard)
    except DataError as error:
        return _Checked((), 0, Counter(), (*problems, str(error)))
    problems += _table_problems(index, shard, samples)
    for sample in samples:
        tick()
        problems += _sample_problems(index, shard, sample)
    return _Checked(
        keys=tuple(sample.key for sample in samples),
        num_unlabelled=sum(not sample.classes for sample in samples),
        images_of_class=Counter(c for sample in samples for c in sample.classes),
        problems=tuple(problems),
    )


def _file_problems(index: Index, shard: int) -> Iterator[str]:
    """Is the tar the one that was built?"""
    entry = index.shards[shard]
    path = index.root / entry.file
    try:
        digest = file_sha256(path)
        size = path.stat().st_size
    except OSError as error:
        yield f"{path}: cannot be read ({error.strerror}); copy or build it anew."
        return
    if size != entry.bytes:
        yield f"{path}: has {size} bytes, the index says {entry.bytes}; copy or build it anew."
    elif digest != entry.sha256:
        yield f"{path}: its sha256 is not the one in the index; copy or build it anew."


def _table_problems(index: Index, shard: int, samples: tuple[Sample, ...]) -> Iterator[str]:
    """Does the table describe this tar?"""
    entry = index.shards[shard]
    path = index.root / entry.file
    try:
        members = read_members(path)
    except DataError as error:
        yield str(error)
        return
    stated = [(sample.key, dict(sample.members)) for sample in samples]
    if stated != list(members.items()):
        yield f"{path}: its members are not those of its table; build it anew."
    counts = (len(samples), sum(bool(sample.classes) for sample in samples))
    if counts != (entry.num_samples, entry.num_labelled):
        yield (
            f"{path}: {counts[0]} samples, {counts[1]} with a class; the index says "
            f"{entry.num_samples} and {entry.num_labelled}; build the shards anew."
        )


def _sample_problems(index: Index, shard: int, sample: Sample) -> Iterator[str]:
    """Does everything of a sample decode, and agree?"""
    where = f"{index.root / index.shards[shard].file}: {sample.key}"
    try:
        read_sample(index, shard, sample)
        stated = json.loads(
            read_member(index.root / index.shards[shard].file, sample.members["json"])
        )
        if index.ground_truth:
            truth = read_ground_truth(index, shard, sample)
            values = np.unique(truth[truth != IGNORE])
            if values.size and values[-1] > len(index.classes):
                yield f"{where}.gt.png: label {values[-1]} is more than {len(index.classes)}."
    except (DataError, KeyError, ValueError) as error:
        yield f"{where}: {error}"
        return
    facts = {"classes": list(sample.classes), "width": sample.width, "height": sample.height}
    if stated != facts:
        yield f"{where}.json: says {stated}, the table {facts}."
    if any(not 0 <= c < len(index.classes) for c in sample.classes):
        yield f"{where}: classes {sample.classes} are not all in 0..{len(index.classes) - 1}."
