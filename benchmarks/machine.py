"""What the figures of a benchmark were measured on, and how it calls the project."""

import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

CODE = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "numpy", "opencv-python-headless", "numba")


def machine() -> str:
    """Processor, cores, versions, load, date and commit, as a sentence."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    processor = names[0].split(":")[1].strip() if names else platform.processor()
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{processor}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f} at the end), "
        f"Python {platform.python_version()}, {versions}; {date.today()}, {_code()}."
    )


def start(*words: object) -> subprocess.Popen[bytes]:
    """Start a script or module of the project with one thread, and print the command."""
    print("$ python", *words, flush=True)
    environment = os.environ | {"PYTHONPATH": str(CODE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=CODE, env=environment)


def run(*words: object) -> None:
    """Run a command of the project to its end; it must succeed."""
    if code := start(*words).wait():
        sys.exit(f"the command failed with exit code {code}, see above")


def _code() -> str:
    """The commit of this checkout, and whether there are changes on top of it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return f"commit {found.stdout.strip()}" if found.returncode == 0 else "no git checkout"
