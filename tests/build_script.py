"""Run the scripts of shards/ as a user does, and look at what they leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def command(script: str, *options: object) -> list[str]:
    """The command line of a script."""
    return [sys.executable, str(ROOT / "shards" / script), *map(str, options)]


def environment() -> dict[str, str]:
    """The environment of a script: the package need not be installed."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run_script(script: str, *options: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script to its end; its exit code is `code`, and it shows no traceback."""
    done = subprocess.run(
        command(script, *options), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def content_of(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of a folder of shards, without the notes of its build."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
