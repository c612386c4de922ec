"""A folder of shards under construction: of one description, by one build at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from auxdist.data.index import INDEX_NAME
from auxdist.errors import DataError
from auxdist.runfolder import write_json

BUILD_NAME = "build.json"
"""The options that the shards are made with."""
NOTES = ".build"
"""The folder for what only another build needs."""
_CUT = "cut.json"
_LOCK = "lock"


def claim(out: Path, description: dict[str, Any]) -> str:
    """Make the folder one for this description; its hash comes back.

    Raises:
        DataError: the folder holds shards of another description.
    """
    path = out / BUILD_NAME
    description = json.loads(json.dumps(description))
    if path.exists():
        before = read_object(path)
        names = sorted(n for n in {*before, *description} if before.get(n) != description.get(n))
        if names and any(out.glob("*.tar")):  # a build that made nothing binds no other
            changes = "; ".join(f"{n}: {before.get(n)} -> {description.get(n)}" for n in names)
            raise DataError(
                f"{out}: holds shards that were built with other options ({changes}); name another "
                "folder, or delete this one."
            )
    elif (out / INDEX_NAME).exists():
        raise DataError(f"{out}: holds shards of another making; name another folder.")
    for left_over in out.glob(".*.tmp"):
        left_over.unlink(missing_ok=True)
    write_json(path, description)
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where the file is none or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@contextmanager
def only_build(out: Path) -> Iterator[None]:
    """Keep a second build out of the folder; the lock goes when the process does.

    Raises:
        DataError: another build holds it, or the file system knows no locks.
    """
    (out / NOTES).mkdir(parents=True, exist_ok=True)
    with (out / NOTES / _LOCK).open("a") as file:  # NFS keeps locks of folders to the node
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{out}: another build is at work in this folder; wait for it."
            ) from error
        except OSError as error:
            raise DataError(
                f"{file.name}: cannot be locked ({error.strerror}), so two builds could be at work "
                "at once; build on a file system with locks (Lustre: mounted with -o flock)."
            ) from error
        yield


class Cut(NamedTuple):
    """Where shards ended when a folder was finished.

    sizes   samples of each shard
    absent  keys of samples whose files were not there, and so had no size
    """

    sizes: list[int]
    absent: set[str]


def kept_cut(out: Path, fingerprint: str) -> Cut | None:
    """How the samples were cut when the folder was finished; None where it never was."""
    before = read_object(out / NOTES / _CUT)
    if before.get("fingerprint") != fingerprint:
        return None
    return Cut(before["sizes"], set(before.get("absent", ())))


def keep_cut(out: Path, fingerprint: str, cut: Cut) -> None:
    """Let later builds cut the same samples in the same way."""
    note = {"fingerprint": fingerprint, "sizes": cut.sizes, "absent": sorted(cut.absent)}
    write_json(out / NOTES / _CUT, note)
