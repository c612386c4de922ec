"""What is in a folder of shards, and where: index.json, and one table of samples beside each shard.

The tables are read when first needed, so that an index of a million shards opens at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from auxdist.errors import DataError, unreadable
from auxdist.runfolder import write_json

SCHEMA = 1
INDEX_NAME = "index.json"


@dataclass(frozen=True)
class Member:
    """Where a file lies inside a tar, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class Sample:
    """One sample of a shard. `members` are its files by extension: "jpg", "json", "sal.png", .."""

    key: str
    width: int
    height: int
    classes: tuple[int, ...]
    members: Mapping[str, Member]


@dataclass(frozen=True)
class Shard:
    """One tar. `num_labelled` samples have at least one class."""

    file: str
    bytes: int
    sha256: str
    num_samples: int
    num_labelled: int
    table_sha256: str


@dataclass(frozen=True)
class Index:
    """A folder of image shards, as its index.json describes it."""

    root: Path
    split: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    saliency: str
    """Where the saliency maps come from, in words."""
    ground_truth: bool
    shards: tuple[Shard, ...]
    sha256: str
    """Of index.json itself: names the whole content."""

    @cached_property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.num_samples for shard in self.shards)

    @cached_property
    def num_labelled(self) -> int:
        """Samples with at least one class in all shards."""
        return sum(shard.num_labelled for shard in self.shards)

    def shard_sizes(self, labelled_only: bool = False) -> np.ndarray:
        """(num_shards,) int64 samples of each shard."""
        counts = [s.num_labelled if labelled_only else s.num_samples for s in self.shards]
        return np.asarray(counts, dtype=np.int64)

    def samples(self, shard: int) -> tuple[Sample, ...]:
        """The samples of a shard, in the order of the tar.

        Raises:
            DataError: the table is missing or is not the one that index.json names.
        """
        entry = self.shards[shard]
        return read_table(table_path(self.root / entry.file), entry.table_sha256)


def table_path(tar: Path) -> Path:
    """The table of samples of a tar: `name-000000.tar` has `name-000000.json`."""
    return tar.with_suffix(".json")


def write_table(tar: Path, samples: list[Sample]) -> str:
    """Write the table of a tar, atomically; its sha256 comes back."""
    rows = [asdict(sample) for sample in samples]
    write_json(table_path(tar), {"schema": SCHEMA, "samples": rows})
    return hashlib.sha256(table_path(tar).read_bytes()).hexdigest()


@lru_cache(maxsize=256)
def read_table(path: Path, sha256: str) -> tuple[Sample, ...]:
    """Read and check a table of samples.

    Raises:
        DataError: the file is missing, or its bytes are not those of `sha256`.
        NodeFault: its file system does not answer.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, "build or copy the shards anew") from error
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(
            f"{path}: its sha256 is {found[:12]}..., the index says {sha256[:12]}...; the table "
            "does not belong to this index or is damaged. Build or copy the shards anew."
        )
    return tuple(_sample(row) for row in json.loads(content)["samples"])


def _sample(row: dict[str, Any]) -> Sample:
    members = {name: Member(**place) for name, place in row["members"].items()}
    return Sample(row["key"], row["width"], row["height"], tuple(row["classes"]), members)


def write_index(index: Index) -> Path:
    """Write index.json, atomically and last: without it the folder holds no shards."""
    value = {k: v for k, v in asdict(index).items() if k not in ("root", "sha256")}
    write_json(index.root / INDEX_NAME, {"schema": SCHEMA, **value})
    return index.root / INDEX_NAME


def load_index(root: Path | str) -> Index:
    """Open a folder of image shards.

    Raises:
        DataError: there is no index, or it is damaged or of another schema.
    """
    path = Path(root) / INDEX_NAME
    try:
        content = path.read_bytes()
        value = json.loads(content)
    except OSError as error:
        raise DataError(
            f"{path}: no shards here ({error.strerror}); build them with shards/build_*.py."
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); build or copy the shards anew.") from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise DataError(
            f"{path}: schema {SCHEMA} was expected; build the shards anew with this version."
        )
    try:
        index = Index(
            root=Path(root),
            split=value["split"],
            classes=tuple(value["classes"]),
            palette=tuple((r, g, b) for r, g, b in value["palette"]),
            saliency=value["saliency"],
            ground_truth=value["ground_truth"],
            shards=tuple(Shard(**shard) for shard in value["shards"]),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        files = [shard.file for shard in index.shards]
        are_plain = all(Path(file).name == file and file.endswith(".tar") for file in files)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: is damaged ({error!r}); build or copy the shards anew."
        ) from error
    if not are_plain or len(set(files)) < len(files):
        raise DataError(
            f"{path}: shards must be .tar files beside it, each named once; build or copy them "
            "anew."
        )
    return index
