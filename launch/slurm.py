"""Submit a run to SLURM: python launch/slurm.py --nodes 4 --gpus-per-node 8 configs/coco.yaml

The job goes on by itself after preemption, its time limit and lost processes or nodes. The same
command on the same run folder goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare clone too

from auxdist.errors import AuxdistError
from auxdist.evaluate.tables import rounds_table
from auxdist.jobs.checks import warnings_of
from auxdist.jobs.submit import (
    Request,
    checked,
    create_run,
    dry_run,
    has_more_to_do,
    require_submittable,
    submit,
)

OPTIONS = {
    "nodes": "number of nodes",
    "gpus-per-node": "GPUs, and so processes, on each node",
    "procs-per-node": "processes on each node of a cluster without GPUs",
    "cpus-per-proc": "CPUs of each process",
    "partition": "SLURM partition",
    "account": "SLURM account",
    "time": "time limit of one start of the job in minutes",
}
"""Options that stand for a key of the launch section; without one the configuration holds."""
KEYS = {option: f"launch.{option.replace('-', '_')}" for option in OPTIONS} | {
    "time": "launch.time_min"
}


def main() -> int:
    """Parse, submit, say where things are; the exit code comes back."""
    wanted = _parser().parse_args()
    stated = {option: getattr(wanted, option.replace("-", "_")) for option in OPTIONS}
    overrides = [f"{KEYS[option]}={value}" for option, value in stated.items() if value is not None]
    request = Request(wanted.config, [*wanted.set, *overrides], wanted.run)
    try:
        return _show(request) if wanted.dry_run else _submit(request)
    except AuxdistError as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("config", type=Path, help="configuration file")
    for option, text in OPTIONS.items():
        parser.add_argument(f"--{option}", help=text)
    parser.add_argument("--run", type=Path, help="run folder (runs/NAME)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the configuration"
    )
    parser.add_argument("--dry-run", action="store_true", help="write and print, submit nothing")
    return parser


def _show(request: Request) -> int:
    run, config = checked(request)
    folder, batch, configuration = dry_run(run, config)
    for warning in warnings_of(config):
        print(warning, file=sys.stderr)
    print(f"# {folder / 'job.sbatch'}\n{batch}\n\n# {folder / 'config.yaml'}\n{configuration}")
    return 0


def _submit(request: Request) -> int:
    run, config = checked(request)
    if run.complete.exists() and not has_more_to_do(run, config):
        print(f"{run.root}: everything is done already.\n")
        print(rounds_table(run, config))
        return 0
    require_submittable(run, config)  # before anything is written
    create_run(request)
    job_id = submit(run, config)
    print(f"job      {job_id}, {config.launch.nodes} nodes, {config.launch.num_ranks} processes")
    print(f"run      {run.root}")
    print(f"log      {run.job_log(job_id)} (and .out; one pair for each process)")
    print(f"look     auxdist status {run.root}")
    print(f"stop     scancel {job_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
