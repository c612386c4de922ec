"""One shard on disk: a WebDataset tar of deterministic bytes, and the table of its samples.

The only writer of shards: image shards and label shards come out of `write_shard`.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from auxdist.data.index import Member, Sample, Shard, write_table
from auxdist.errors import DataError
from auxdist.runfolder import atomic_file, file_sha256

if TYPE_CHECKING:
    from webdataset.writer import TarWriter

MAX_KEY = 80
"""Longest key: key, dot and extension must fit the 100 bytes of a plain (USTAR) tar name."""

_KEY = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY}}}")
_EXTENSION = re.compile(r"[a-z0-9]{1,9}(\.[a-z0-9]{1,9})?")


@dataclass(frozen=True)
class SampleFacts:
    """What the table says of a sample besides its members; `classes` are 0..C-1."""

    width: int
    height: int
    classes: tuple[int, ...]


def check_key(key: str) -> None:
    """Refuse keys that WebDataset would cut at a dot or that could lead out of a folder.

    Raises:
        DataError: the key is not 1 to 80 of A-Z a-z 0-9 _ -.
    """
    if not _KEY.fullmatch(key):
        raise DataError(
            f"sample key {key!r}: a key is 1 to {MAX_KEY} of A-Z a-z 0-9 _ - (no dot, slash or "
            "space); rename the file."
        )


def write_shard(
    tar: Path, samples: Iterable[tuple[str, Mapping[str, bytes], SampleFacts]]
) -> Shard:
    """Write one tar and its table; equal samples give equal bytes.

    `samples` are (key, bytes by extension such as "jpg" or "sal.png", facts); they are taken one
    by one. The tar appears under its name only when it is whole, its table right after it.

    Raises:
        DataError: a key or extension is unsafe, a key comes twice, or there is no sample.
    """
    facts: dict[str, SampleFacts] = {}
    with atomic_file(tar) as temporary:
        with temporary.open("wb") as stream, _deterministic_writer(stream) as writer:
            for key, content, fact in samples:
                _check_sample(tar, key, content, facts)
                facts[key] = fact
                writer.write({"__key__": key, **content})
        if not facts:
            raise DataError(f"{tar}: a shard needs at least one sample; write fewer shards.")
        members = read_members(temporary)
        size, digest = temporary.stat().st_size, file_sha256(temporary)
    rows = [Sample(k, f.width, f.height, f.classes, members[k]) for k, f in facts.items()]
    return Shard(
        file=tar.name,
        bytes=size,
        sha256=digest,
        num_samples=len(rows),
        num_labelled=sum(bool(row.classes) for row in rows),
        table_sha256=write_table(tar, rows),
    )


def read_members(tar: Path) -> dict[str, dict[str, Member]]:
    """Where every member of a tar lies, by key and extension, in the order of the tar.

    Raises:
        DataError: not a tar, or a member that is no plain file, has an unsafe name or comes twice.
    """
    found: dict[str, dict[str, Member]] = {}
    for info in _entries(tar):
        key, _, extension = info.name.partition(".")
        if not (info.isreg() and _KEY.fullmatch(key) and _EXTENSION.fullmatch(extension)):
            raise DataError(
                f"{tar}: member {info.name!r} is not a plain file called KEY.EXTENSION; this is "
                "not a shard of ours, do not unpack it."
            )
        members = found.setdefault(key, {})
        if extension in members:
            raise DataError(f"{tar}: member {info.name!r} comes twice; build the shard anew.")
        members[extension] = Member(info.offset_data, info.size)
    return found


def _entries(tar: Path) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(tar, "r:") as archive:
            yield from archive
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{tar}: is not a readable tar ({error}); build it anew.") from error


def _deterministic_writer(stream: object) -> TarWriter:
    from webdataset.writer import TarWriter  # imports torch, which takes seconds

    return TarWriter(stream, user="", group="", mode=0o444, mtime=0, encoder=False, compress=False)


def _check_sample(
    tar: Path, key: str, content: Mapping[str, bytes], before: Mapping[str, SampleFacts]
) -> None:
    check_key(key)
    if key in before:
        raise DataError(f"{tar}: sample key {key!r} comes twice; keys must differ.")
    for extension in content:
        if not _EXTENSION.fullmatch(extension):
            raise DataError(
                f"{tar}: sample {key!r} has a member {extension!r}; an extension is one or two "
                "words of a-z 0-9, such as jpg or sal.png."
            )
