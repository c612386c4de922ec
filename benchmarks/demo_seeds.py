"""The demo with several seeds, of scenes and of training: python benchmarks/demo_seeds.py

Does what `make demo` does, once for each seed, and writes benchmarks/results/demo.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from machine import CODE, machine
from machine import run as run_command
from tabulate import tabulate

from auxdist.configfile import load_config
from auxdist.evaluate.tables import read_measurement, rounds_table
from auxdist.runfolder import RunFolder

ROUNDS = 3


def main() -> None:
    """Run every seed, then write the tables."""
    parser = argparse.ArgumentParser(description="The demo with several seeds.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=CODE / "build" / "demo-seeds")
    parser.add_argument("--results", type=Path, default=CODE / "benchmarks/results/demo.md")
    wanted = parser.parse_args()
    runs = {}
    for seed in wanted.seeds:
        since = time.monotonic()
        run = demo(seed, wanted.out / f"seed-{seed}")
        runs[seed] = (run, time.monotonic() - since)
    wanted.results.write_text(page(runs))
    print(wanted.results.read_text())


def demo(seed: int, out: Path) -> RunFolder:
    """Shards and run of one seed. Seed 0 is `make demo`."""
    build = ("shards/build_demo.py", "--samples-per-shard", "40")
    run_command(*build, "--count", "640", "--seed", 2 * seed, out / "train")
    run_command(*build, "--count", "120", "--seed", 2 * seed + 1, "--no-saliency", out / "val")
    settings = (f"seed={seed}", f"data.train={out / 'train'}", f"data.val={out / 'val'}")
    words = [word for setting in settings for word in ("--set", setting)]
    run_command("launch/local.py", "--procs", 2, "configs/demo.yaml", "--run", out / "run", *words)
    return RunFolder(out / "run")


def page(runs: dict[int, tuple[RunFolder, float]]) -> str:
    """The results as a page."""
    parts = [
        "# The demo with three seeds\n",
        f"`python benchmarks/demo_seeds.py` on {machine()}",
        "A seed stands for other scenes, other initial weights and another order of samples.\n",
        summary(runs),
    ]
    for seed, (run, _) in runs.items():
        table = rounds_table(run, load_config(run.config))
        parts.append(f"\n## Seed {seed}\n\n```\n{table}\n```")
    return "\n".join(parts) + "\n"


def summary(runs: dict[int, tuple[RunFolder, float]]) -> str:
    """One row a seed: first and last labels, first and last validation."""
    names = ["cam-round-00", "labels-round-00", f"labels-round-{ROUNDS:02d}"]
    names += ["val-round-00", f"val-round-{ROUNDS - 1:02d}"]
    rows = []
    for seed, (run, seconds) in runs.items():
        found = [read_measurement(run, name) for name in names]
        rows.append([seed, *(f"{100 * m.miou:.1f}" for m in found if m), f"{seconds / 60:.1f}"])
    header = ["seed", "CAM only", "initial labels", "last labels", "val, round 0"]
    header += [f"val, round {ROUNDS - 1}", "minutes"]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
