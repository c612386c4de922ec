"""The demo's job in a size for tests, and what two runs of it are compared by."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from auxdist.observe.events import read_events
from auxdist.runfolder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
SMALLER: dict[str, object] = {
    "data.workers": 1,
    "classifier.epochs": 1,
    "train.epochs": 2,
    "train.checkpoint_every_steps": 5,
    "train.log_keys": "true",
    "train.log_every_steps": 1,
    "labels.gate.enabled": "false",  # so few steps teach nothing: take whatever labels come
}
NUM_TRAIN = 48


def build_shards(folder: Path) -> Path:
    """Scenes for training and validation below `folder`."""
    for split, count in (("train", NUM_TRAIN), ("val", 8)):
        words = ["--count", str(count), "--samples-per-shard", "8", str(folder / split)]
        call(sys.executable, str(ROOT / "shards" / "build_demo.py"), *words)
    return folder


def call(*command: str) -> str:
    """What a command prints; it must succeed."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def launch_words(run: RunFolder, shards: Path) -> list[str]:
    """Configuration, run folder and changes, for either launcher."""
    keys = SMALLER | {"data.train": shards / "train", "data.val": shards / "val"}
    settings = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    return [str(ROOT / "configs" / "demo.yaml"), "--run", str(run.root), *settings]


def local_command(run: RunFolder, shards: Path, procs: int) -> list[str]:
    """The command that runs it on this machine."""
    script = str(ROOT / "launch" / "local.py")
    return [sys.executable, script, "--procs", str(procs), *launch_words(run, shards)]


def by_step(run: RunFolder, kind: str, field: str, rank: int = 0) -> dict[tuple[int, int], object]:
    """A field of all records of a kind, by round and step."""
    return {(r["round"], r["step"]): r[field] for r in read_events(run, rank) if r["kind"] == kind}


def manifests(run: RunFolder) -> list[str]:
    """Manifests of all label rounds; they name the sha256 of every label shard."""
    return [path.read_text() for path in sorted(run.root.glob("labels/*/manifest.json"))]
