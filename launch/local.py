"""Run everything on this machine: python launch/local.py --procs 2 configs/demo.yaml

The same command on the same run folder goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare clone too

from auxdist.errors import AuxdistError
from auxdist.evaluate.tables import rounds_table
from auxdist.jobs.submit import Request, create_run, start_locally


def main() -> int:
    """Parse, start, say how it ended; the exit code comes back."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("config", type=Path, help="configuration file")
    parser.add_argument("--procs", type=int, default=1, help="processes, one for each GPU (1)")
    parser.add_argument("--run", type=Path, help="run folder (runs/NAME)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the configuration"
    )
    wanted = parser.parse_args()
    try:
        run, config = create_run(Request(wanted.config, wanted.set, wanted.run), wanted.procs)
        if run.complete.exists():
            print(f"{run.root}: everything is done already.\n")
            print(rounds_table(run, config))
            return 0
        print(f"run folder {run.root}", flush=True)
        outcome = start_locally(run, config, wanted.procs)
    except AuxdistError as error:
        print(error, file=sys.stderr)
        return 2
    if outcome.message:
        print(outcome.message, file=sys.stderr)
    if outcome.code == 0:
        print(f"\n{rounds_table(run, config)}\n\nreport {run.report}")
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
