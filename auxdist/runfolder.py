"""RunFolder: the only place that lays out a run, and how files get there whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFolder:
    """Names of everything in a run. A submitted job carries only `root`."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, as YAML."""
        return self.root / "config.yaml"

    @property
    def incarnation(self) -> Path:
        """How often the run was started; a process of an earlier start may not write any more."""
        return self.root / "incarnation"

    @property
    def failure(self) -> Path:
        """Why the run stopped for good; such a job is not queued again."""
        return self.root / "failure.json"

    @property
    def complete(self) -> Path:
        """Written when every task of the run is done; a launcher then has nothing to start."""
        return self.root / "complete.json"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"

    @property
    def tensorboard(self) -> Path:
        """What TensorBoard is pointed at."""
        return self.root / "tensorboard"

    @property
    def examples(self) -> Path:
        """A picture of some training images with their labels in all rounds."""
        return self.root / "examples.png"

    @property
    def launch(self) -> Path:
        """What was submitted: sbatch text, job ids, SLURM logs."""
        return self.root / "launch"

    @property
    def lock(self) -> Path:
        """Held by the launcher at work."""
        return self.launch / "lock"

    @property
    def jobs(self) -> Path:
        """The SLURM jobs that were submitted, a record a line."""
        return self.launch / "jobs.jsonl"

    def job_log(self, job_id: str) -> Path:
        """What the main rank of a SLURM job wrote to stderr."""
        return self.launch / f"{job_id}_0_log.err"

    @property
    def latest_labels(self) -> Path:
        """A small file with the name of the newest finished label round."""
        return self.root / "labels" / "latest"

    def checkpoints(self, stage: str) -> Path:
        """Checkpoints of a stage ("classifier" or "round-NN")."""
        return self.root / "checkpoints" / stage

    def checkpoint(self, stage: str, step: int) -> Path:
        """One checkpoint folder; it has a manifest.json when it is whole."""
        return self.checkpoints(stage) / f"step-{step:07d}"

    def labels(self, round: int) -> Path:
        """Label shards of a round; they have a manifest.json when they are whole."""
        return self.root / "labels" / f"round-{round:02d}"

    def evaluation(self, name: str) -> Path:
        """A finished measurement, e.g. "val-round-00" or "labels-round-00"."""
        return self.root / "evaluation" / f"{name}.json"

    def evaluations(self, kind: str, round: int) -> list[Path]:
        """The finished measurements of a kind ("val", "labels") of a round."""
        return sorted((self.root / "evaluation").glob(f"{kind}-round-{round:02d}*.json"))

    @property
    def set_aside(self) -> Path:
        """What a rollback took out of the run, a dated folder each; nothing reads it."""
        return self.root / "set-aside"

    def events(self, rank: int) -> Path:
        """The event log of a rank, one JSON record a line."""
        return self.root / "events" / f"rank-{rank:04d}.jsonl"


def read_failure(run: RunFolder) -> dict[str, Any] | None:
    """Why a run stopped for good: error, message and rank; None where it did not."""
    try:
        found: dict[str, Any] = json.loads(run.failure.read_text())
    except FileNotFoundError:
        return None
    except ValueError:  # whoever wrote it was killed
        found = {"error": "an error", "rank": "?"}
        found["message"] = f"{run.failure} was cut short; the log says what went wrong"
    return found


def rounds_in(folder: Path) -> list[int]:
    """The rounds that have a folder "round-NN" in `folder`; other names count for nothing."""
    found = (re.fullmatch(r"round-(\d+)", path.name) for path in folder.glob("round-*"))
    return sorted(int(match[1]) for match in found if match)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path`, fsynced, when the block ends without an error.

    Readers see the old file or the whole new one. Two writers at once do not mix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text`, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_sha256(path: Path) -> str:
    """The hash by which a file is named elsewhere, and known to be whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Force a file's bytes to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


sync_folder = sync_file
"""Force a folder's entries to disk (a folder is opened and synced like a file)."""
