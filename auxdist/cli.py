"""`auxdist VERB`: looking at runs and using them. Every verb imports late.

Runs are started by launch/local.py and launch/slurm.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auxdist import __version__
from auxdist.errors import AuxdistError, ConfigError, PeerFailed
from auxdist.runfolder import RunFolder, write_json

if TYPE_CHECKING:
    from auxdist.jobs.use import Use

Verb = Callable[[argparse.Namespace], int]


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code comes back, 2 after an error a user can mend."""
    wanted = _parser().parse_args(words)
    verb: Verb = wanted.verb
    try:
        return verb(wanted)
    except PeerFailed:  # the other rank has said it
        return 2
    except AuxdistError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # of a path on the command line, or of a disk that is full
        if error.filename is None:
            raise
        print(f"{error.filename}: {error.strerror}.", file=sys.stderr)
        return 2


def check(wanted: argparse.Namespace) -> int:
    """Find every problem of a configuration that shows without a GPU."""
    from auxdist.jobs.checks import warnings_of
    from auxdist.jobs.submit import Request, checked

    run, config = checked(Request(wanted.config, wanted.set, wanted.run), wanted.procs)
    ranks = wanted.procs or config.launch.num_ranks
    print(f"{wanted.config}: good for {ranks} processes; the run folder is {run.root}")
    for warning in warnings_of(config):
        print(warning)
    return 0


def status(wanted: argparse.Namespace) -> int:
    """Say what a run is doing and what was measured so far."""
    from auxdist.jobs.status import status_of

    print(status_of(_run(wanted)).text())
    return 0


def report(wanted: argparse.Namespace) -> int:
    """Write report.html of a run, finished or not."""
    from auxdist.observe.report import write_report

    print(write_report(_run(wanted)))
    return 0


def tensorboard(wanted: argparse.Namespace) -> int:
    """Write the curves of a run, finished or not, for TensorBoard."""
    from auxdist.observe.tensorboard import write_tensorboard

    print(f"tensorboard --logdir {write_tensorboard(_run(wanted))}")
    return 0


def evaluate(wanted: argparse.Namespace) -> int:
    """Measure a network on a split with ground truth."""
    if wanted.procs > 1 and "RANK" not in os.environ:
        return _evaluate_on_ranks(wanted)
    from auxdist.evaluate.tables import class_table
    from auxdist.jobs.use import evaluate_split

    found = evaluate_split(wanted.split_folder, _use(wanted))
    if found.is_main:
        images, how = found.measurement.num_images, found.inference.text
        print(f"{found.subject.title} on {images} images of {found.index.root}")
        print(f"{how}\n" if how else "")
        print(class_table(found.measurement, found.index.classes))
        if wanted.json:
            write_json(wanted.json, found.as_json())
    return 0


def predict(wanted: argparse.Namespace) -> int:
    """Segment images; writes labels as palette PNG and an overlay for each."""
    from auxdist.jobs.use import predict_images

    for labels, overlay in predict_images(wanted.images, wanted.out, _use(wanted)):
        print(f"{labels}  {overlay}")
    return 0


def ablate(wanted: argparse.Namespace) -> int:
    """Run variants of a configuration with several seeds, and compare them in one table."""
    from auxdist.configfile import load_config
    from auxdist.jobs.ablate import (
        Ablation,
        ablation_table,
        chosen_variants,
        run_ablation,
        without_repeats,
        write_page,
    )

    variants = chosen_variants(wanted.variants, wanted.add)
    name = load_config(wanted.config, wanted.set).name
    root = (wanted.out or Path("runs") / f"{name}-ablation").absolute()
    ablation = Ablation(wanted.config, root, wanted.procs, wanted.set, variants, wanted.seeds)
    ablation, repeats = without_repeats(ablation)
    for name, other in repeats.items():
        print(f"{name} is what {other} is in this configuration, and not run by itself.")
    outcome = run_ablation(ablation)
    if outcome.message:
        print(outcome.message, file=sys.stderr)
    print(f"\n{ablation_table(ablation)}\n\n{write_page(ablation, repeats)}")
    return outcome.code


def _use(wanted: argparse.Namespace) -> Use:
    from auxdist.jobs.use import OfFile, OfRun, Use

    if wanted.weights and wanted.config and not wanted.run and wanted.round is None:
        source = OfFile(wanted.config, wanted.weights)
        return Use(source, wanted.post_process, wanted.set)
    if not wanted.run or wanted.weights or wanted.config:
        raise ConfigError(
            "Give either a run folder, with --round or without, or --weights FILE and --config "
            "FILE, the configuration of a network with these weights."
        )
    return Use(OfRun(_run(wanted), wanted.round), wanted.post_process, wanted.set)


def import_weights(wanted: argparse.Namespace) -> int:
    """Turn published weights into a file for model.weights or classifier.weights."""
    from auxdist.configfile import load_config
    from auxdist.jobs.weightfile import import_file

    config = load_config(wanted.config, wanted.set)
    print(import_file(wanted.weights, config.model, wanted.out).text())
    print(wanted.out)
    return 0


def _evaluate_on_ranks(wanted: argparse.Namespace) -> int:
    from auxdist.jobs.local import run_processes
    from auxdist.jobs.submit import rank_environment
    from auxdist.jobs.use import OfRun, evaluation_of

    use = _use(wanted)
    config, _ = evaluation_of(wanted.split_folder, use)  # else each rank says what is wrong
    use.source.require(config)
    if isinstance(use.source, OfRun):  # else each rank of a run that goes on looks for itself
        wanted.round = use.source.chosen(config)
    command = [sys.executable, "-m", "auxdist.cli", "evaluate"]
    command += [str(wanted.run)] if wanted.run else []
    for name in ("split_folder", "round", "json", "weights", "config"):
        if (value := getattr(wanted, name)) is not None:
            command += ["--" + name.replace("_", "-"), str(value)]
    command += ["--post-process"] * wanted.post_process
    command += [word for text in wanted.set for word in ("--set", text)]
    environment = rank_environment(config, wanted.procs)
    outcome = run_processes(command, wanted.procs, environment, resumes=False)
    if outcome.code:
        print(f"Measuring did not end. {outcome.message}", file=sys.stderr)
    return outcome.code


def list_labels(wanted: argparse.Namespace) -> int:
    """Show the rounds of labels of a run, with their figures."""
    from auxdist.labels.listing import labels_table

    print(labels_table(_run(wanted)))
    return 0


def diff_labels(wanted: argparse.Namespace) -> int:
    """Show which labels changed between two rounds, by class."""
    from auxdist.configfile import load_config
    from auxdist.data.index import load_index
    from auxdist.evaluate.tables import percent
    from auxdist.labels.listing import compare

    run = _run(wanted)
    index = load_index(load_config(run.config).data.train)
    found = compare(run, index, wanted.before, wanted.after)
    print(
        f"labels of rounds {wanted.before} and {wanted.after} of {found.num_images} images: "
        f"{percent(found.changes.share)} % of the pixels differ\n"
    )
    print(found.table(index.classes))
    return 0


def roll_back_labels(wanted: argparse.Namespace) -> int:
    """Make a run go on from earlier labels; what came of later ones is set aside."""
    from auxdist.jobs.rollback import roll_back

    run = _run(wanted)
    if roll_back(run, wanted.round) is None:
        print(f"{run.root}: nothing came after the labels of round {wanted.round}.")
        return 0
    print("The command that started the run goes on from there.")
    return 0


def _run(wanted: argparse.Namespace) -> RunFolder:
    run = RunFolder(wanted.run.absolute())
    if not run.config.exists():
        raise ConfigError(
            f"{run.root}: is not a run folder, it has no config.yaml; give the folder that "
            "launch/local.py or launch/slurm.py named."
        )
    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="auxdist", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"auxdist {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def add(verb: Verb) -> argparse.ArgumentParser:
        text = verb.__doc__ or ""
        name = verb.__name__.replace("_", "-")
        added = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(verb=verb)
        return added

    _add_check(add(check))
    for verb in (status, report, tensorboard):
        add(verb).add_argument("run", type=Path, help="run folder")
    _add_evaluate(add(evaluate))
    _add_predict(add(predict))
    _add_labels(verbs)
    _add_ablate(add(ablate))
    _add_import_weights(add(import_weights))
    return parser


def _add_labels(verbs: Any) -> None:
    text = "List, compare and roll back rounds of labels."
    parser = verbs.add_parser("labels", help=text, description=text, allow_abbrev=False)
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def add(name: str, verb: Verb, *rounds: tuple[str, str]) -> None:
        text = verb.__doc__ or ""
        added = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(verb=verb)
        added.add_argument("run", type=Path, help="run folder")
        for dest, help in rounds:
            added.add_argument(dest, type=int, metavar=dest.upper(), help=help)

    add("list", list_labels)
    add("diff", diff_labels, ("before", "a round of labels"), ("after", "another one"))
    add("rollback", roll_back_labels, ("round", "labels that the run shall go on from"))


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="configuration file")
    parser.add_argument("--procs", type=int, help="processes (those of the launch section)")
    parser.add_argument("--run", type=Path, help="run folder (runs/NAME)")
    _add_set(parser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, nargs="?", help="run folder")
    parser.add_argument("--split-folder", type=Path, help="image shards (data.val)")
    parser.add_argument("--procs", type=int, default=1, help="processes, one for each GPU (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurement there too")
    _add_use(parser)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    _add_use(parser)


def _add_use(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--round", type=int, help="round of the network (the last finished one)")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="use these, not those of a run"
    )
    parser.add_argument("--config", type=Path, help="configuration of the network of --weights")
    parser.add_argument(
        "--post-process", action="store_true", help="several scales, and the segmentation CRF"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change the configuration; of a run, its section evaluate",
    )


def _add_ablate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="configuration file")
    parser.add_argument("--variants", nargs="*", metavar="NAME", help="only these (all)")
    parser.add_argument(
        "--add",
        action="append",
        nargs="+",
        default=[],
        metavar=("NAME", "KEY=VALUE"),
        help="one more variant, with its settings",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], metavar="N", help="(0 1)")
    parser.add_argument("--procs", type=int, default=1, help="processes of each run (1)")
    parser.add_argument("--out", type=Path, help="folder for the runs (runs/NAME-ablation)")
    _add_set(parser)


def _add_import_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="FILE", help="a .safetensors or .pth file, or imagenet")
    parser.add_argument("--config", type=Path, required=True, help="configuration of the network")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    _add_set(parser)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the configuration"
    )


if __name__ == "__main__":  # a rank of an evaluation
    from auxdist.jobs.job import leave_after

    leave_after(main)
