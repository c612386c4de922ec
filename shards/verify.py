"""Check folders of image shards: index, tables, hashes, members, and that every sample decodes.

python shards/verify.py data/voc/train data/voc/val
"""

import argparse
import sys
from pathlib import Path

from auxdist.data.command import EXIT_BAD, add_processes, progress_bar, run_command
from auxdist.data.index import load_index
from auxdist.data.verify import verify


def main() -> None:
    """Check every folder; exit code 2 if anything is wrong."""
    parser = argparse.ArgumentParser(description="Check folders of image shards.")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    add_processes(parser)
    options = parser.parse_args()
    sound = True
    for folder in options.folders:
        index = load_index(folder)
        with progress_bar(index.num_samples, folder.name) as bar:
            findings = verify(index, options.processes, bar.update)
        print(findings.describe())
        sound = sound and not findings.problems
    sys.exit(0 if sound else EXIT_BAD)


if __name__ == "__main__":
    run_command(main)
