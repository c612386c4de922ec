"""What the scripts in shards/ have in common: options, a progress bar, exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from auxdist.data.build import QUARANTINE_NAME, BuildOptions, Report, build
from auxdist.data.estimate import OnnxSaliency, PlainSaliency, ReadySaliency
from auxdist.data.recipe import Recipe, SaliencyMaker
from auxdist.errors import AuxdistError, DataError, Stopped

EXIT_BAD = 2
EXIT_STOPPED = 130


def build_parser(
    description: str | None, source: str | None = None, source_help: str | None = None
) -> argparse.ArgumentParser:
    """A parser with the options that every builder has; `source` is a folder to read from."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if source is not None:
        parser.add_argument(source, type=Path, help=source_help)
    parser.add_argument("out", type=Path, help="folder of shards to be made, e.g. data/voc/train")
    parser.add_argument("--split", help="name of the split; default: the name of the folder")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--shard-mb",
        type=_positive_float,
        default=64,
        metavar="MB",
        help="a shard ends at so many MB of images; default: %(default)s",
    )
    size.add_argument(
        "--samples-per-shard", type=positive, default=0, metavar="N", help="or at so many images"
    )
    add_processes(parser)
    parser.add_argument(
        "--skip-bad", action="store_true", help=f"list bad samples in {QUARANTINE_NAME}; go on"
    )
    parser.add_argument("--saliency", type=Path, metavar="DIR", help="ready maps DIR/KEY.png")
    parser.add_argument(
        "--saliency-model",
        type=Path,
        metavar="FILE.onnx",
        help="make maps by a saliency network; with --saliency, those that are missing there",
    )
    parser.add_argument(
        "--no-saliency", action="store_true", help="no maps: for splits that only measure"
    )
    return parser


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The option --processes; by default, one for every core that this process may use."""
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--processes", type=positive, default=cores, metavar="N", help="default: %(default)s"
    )


def progress_bar(total: int, name: str) -> tqdm:
    """A bar that counts images."""
    return tqdm(total=total, desc=name, unit="image")


def positive(text: str) -> int:
    """A whole number of 1 or more, from the command line."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value}: 1 or more expected")
    return value


def _positive_float(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{value}: more than 0 expected")
    return value


def split_name(options: argparse.Namespace) -> str:
    """The split's name, from --split or the folder."""
    return options.split or options.out.resolve().name


def saliency_maker(options: argparse.Namespace) -> SaliencyMaker | None:
    """Where maps come from; the plain estimator unless the options say otherwise.

    Raises:
        DataError: maps are both asked for and ruled out, or cannot be had from there.
    """
    folder, model = options.saliency, options.saliency_model
    if options.no_saliency:
        if folder or model:
            raise DataError("--no-saliency: contradicts --saliency and --saliency-model.")
        return None
    network = OnnxSaliency.of(model) if model else None
    if folder:
        return ReadySaliency.of(folder, network)
    return network or PlainSaliency()


def run_build(recipe: Recipe, options: argparse.Namespace) -> Report:
    """Build with a progress bar and say what came out."""
    how = BuildOptions(
        options.out,
        options.samples_per_shard,
        options.shard_mb,
        options.processes,
        options.skip_bad,
    )
    with progress_bar(len(recipe.items), recipe.split) as bar:
        report = build(recipe, how, bar.update)
    print(describe(report))
    return report


def describe(report: Report) -> str:
    """The outcome of a build, in a few words."""
    index = report.index
    kept = f" ({report.num_kept} of them finished before)" if report.num_kept else ""
    lines = [
        f"{index.root}: {index.num_samples} images in {len(index.shards)} shards{kept}, "
        f"{len(index.classes)} classes, saliency: {index.saliency}"
    ]
    if report.refused:
        lines.append(f"{len(report.refused)} bad images left out: {index.root / QUARANTINE_NAME}")
    return "\n".join(lines)


def run_command(main: Callable[[], None]) -> None:
    """Run a script's `main`; errors that the user can mend end it with a line, not a traceback."""
    try:
        main()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except AuxdistError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD)
    except OSError as error:  # of a path on the command line that may not be looked at
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}.", file=sys.stderr)
        sys.exit(EXIT_BAD)
