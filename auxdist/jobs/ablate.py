"""Variants of a run beside one another: what does each part of the method bring?

All variants of a seed learn from the same first labels and start from the same classifier, which
are made once; so they differ by nothing but their own settings. Those that differ in the refresh
alone share the first round as well. Every variant and seed is a run folder of its own: what is
finished is not done again, and what stopped goes on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from auxdist.config import Config
from auxdist.configfile import load_config
from auxdist.errors import ConfigError, DataError
from auxdist.evaluate.tables import NOTHING, read_measurement, text_table
from auxdist.jobs.job import EXIT_ERROR
from auxdist.jobs.local import Outcome
from auxdist.jobs.submit import (
    Request,
    changed_keys,
    checked,
    create_run,
    has_more_to_do,
    start_locally,
)
from auxdist.labels.manifest import MANIFEST_NAME
from auxdist.records import CLASSIFIER_ROUND, Position
from auxdist.runfolder import RunFolder, read_failure, sync_folder, write_json, write_text

_NO_UNARY = ("model.affinity.unary=false", "model.affinity.unary_pred=off")
_NO_AFFINITY = (
    *_NO_UNARY,
    "model.affinity.whiten=false",
    "model.affinity.features=false",
    "model.affinity.predictions=off",
)
_NO_SALIENCY = ("model.branches.saliency=false",)
_NO_CLASSIFICATION = ("model.branches.classification=false",)

VARIANTS: dict[str, tuple[str, ...]] = {
    "as-configured": (),
    "auxsegnet": ("model.method=auxsegnet", "model.affinity.whiten=false", *_NO_UNARY),
    "no-whitening": ("model.affinity.whiten=false",),
    "no-unary": _NO_UNARY,
    "unary": ("model.affinity.unary=true", "model.affinity.unary_pred=gated"),
    "unary-features": ("model.affinity.unary=true", "model.affinity.unary_pred=off"),
    "unary-added": ("model.affinity.unary=true", "model.affinity.unary_pred=add"),
    "renormalised": ("model.affinity.renormalise_rows=true",),
    "own-affinity": ("model.affinity.predictions=own",),
    "features-only": ("model.affinity.predictions=off", "model.affinity.unary_pred=off"),
    "no-affinity": _NO_AFFINITY,
    "no-saliency": (*_NO_SALIENCY, "model.affinity.predictions=own"),
    "no-classification": _NO_CLASSIFICATION,
    "segmentation-only": (*_NO_AFFINITY, *_NO_SALIENCY, *_NO_CLASSIFICATION),
    "first-labels": ("labels.refresh=false",),
    "padding-ignored": ("data.crop.pad_label=255",),
}
"""Settings of each named variant, on top of the configuration."""

_START = "start"
"""Begins the names of the runs that all variants of a seed share."""
_AFTER_FIRST_ROUND = ("labels.refresh", "labels.saliency_crf", "train.rounds")
"""Begin the settings on which not even the training of the first round depends."""
_AFTER_FIRST_LABELS = (
    "model.method=",
    "model.affinity.",
    "model.branches.",
    "train.",
    *_AFTER_FIRST_ROUND,
    "data.crop.pad_label=",
)
"""Settings on which neither the classifier nor the first labels depend."""


@dataclass(frozen=True)
class Ablation:
    """Which variants of a configuration to run, with which seeds, and where.

    settings  of all variants, on top of the configuration file
    variants  settings of each variant by name
    """

    config_file: Path
    root: Path
    procs: int = 1
    settings: Sequence[str] = ()
    variants: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(VARIANTS))
    seeds: Sequence[int] = (0,)

    def run_of(self, name: str, seed: int) -> RunFolder:
        """The run folder of a variant with a seed."""
        return RunFolder(self.root / f"{name}-seed{seed}")

    def runs(self, name: str) -> list[RunFolder]:
        """The run folder of each seed of a variant."""
        return [self.run_of(name, seed) for seed in self.seeds]


def chosen_variants(
    names: Sequence[str] | None, own: Sequence[Sequence[str]] = ()
) -> dict[str, tuple[str, ...]]:
    """The named variants (None: all), and own ones, each a name and its settings.

    Raises:
        ConfigError: there is no such variant.
    """
    added = {name: tuple(settings) for name, *settings in own}
    known = VARIANTS | added
    wanted = [*(VARIANTS if names is None else names), *added]
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(
            f"--variants {unknown[0]}: there is no such variant; use some of {', '.join(known)}, "
            "or --add one."
        )
    return {name: known[name] for name in wanted}


def without_repeats(ablation: Ablation) -> tuple[Ablation, dict[str, str]]:
    """The ablation without variants that train what one before them does, and which that is.

    One whose settings cannot be read stays: `run_ablation` says what is wrong with it.
    """
    kept: dict[str, Config | None] = {}
    repeats: dict[str, str] = {}
    for name, own in ablation.variants.items():
        config = _trained_by(ablation, own)
        same = next((other for other, found in kept.items() if config and found == config), None)
        if same is None:
            kept[name] = config
        else:
            repeats[name] = same
    return replace(ablation, variants={name: ablation.variants[name] for name in kept}), repeats


def _trained_by(ablation: Ablation, settings: Sequence[str]) -> Config | None:
    """What a variant of these settings trains; None where they cannot be read."""
    request = Request(ablation.config_file, [*ablation.settings, *settings], ablation.root)
    try:
        config = request.config()
    except ConfigError:
        return None
    # The method is but a name for the affinities that are resolved by now.
    return replace(config, model=replace(config.model, method="auxsegnet+"))


def run_ablation(ablation: Ablation) -> Outcome:
    """Run what is not finished yet; a variant that fails does not keep the others from running.

    Raises:
        ConfigError: variants cannot run at all, or would need first labels of their own.
        LaunchError: one of the runs is going on already.
    """
    _require_good(ablation)
    failed = []
    for seed in ablation.seeds:
        start, outcome = _run(ablation, _start_request(ablation, seed))
        if outcome.code:
            return outcome
        for name in ablation.variants:
            outcome = _run_variant(ablation, name, seed, start)
            if outcome.code not in (0, EXIT_ERROR):  # stopped, or killed: not the variant's fault
                return outcome
            failed += [f"{name} with seed {seed}"] * (outcome.code != 0)
    if failed:
        return Outcome(EXIT_ERROR, f"Failed: {', '.join(failed)}; their messages are above.")
    return Outcome(0)


def ablation_table(ablation: Ablation) -> str:
    """Variants by seed: mIoU of the last labels and networks, mean +- standard deviation."""
    return _table(_results(ablation))


def write_page(ablation: Ablation, repeats: Mapping[str, str]) -> Path:
    """The table with the settings of each variant as ablation.md, and all figures as JSON.

    `repeats` are variants that were left out, and those that they would repeat.
    """
    variants = ablation.variants.items()
    lines = [f"- `{name}`: {_listed(own)}" for name, own in variants]
    lines += [f"- `{name}`: is what `{other}` is" for name, other in repeats.items()]
    settings = "\n".join(lines)
    results = _results(ablation)
    figures = {name: [seed.figures for seed in seeds] for name, seeds in results.items()}
    write_json(ablation.root / "ablation.json", {"seeds": list(ablation.seeds), "miou": figures})
    path = ablation.root / "ablation.md"
    write_text(
        path,
        f"# Ablation of {ablation.config_file}\n\n"
        f"All variants: {_listed(ablation.settings)}. mIoU in per cent, of pseudo labels on the "
        "training images and of networks on the validation images; mean and standard deviation "
        f"over the seeds.\n\n```\n{_table(results)}\n```\n\n{settings}\n",
    )
    return path


def _require_good(ablation: Ablation) -> None:
    """Refuse, before anything runs, variants that cannot run or do not share the first labels."""
    found = []
    for seed in ablation.seeds:
        try:
            checked(_start_request(ablation, seed), ablation.procs)
        except ConfigError as error:
            found += error.problems
    classifiers = {seed: _classifier(ablation.run_of(_START, seed)) for seed in ablation.seeds}
    for name, own in ablation.variants.items():
        if name == _START or not re.fullmatch(r"[A-Za-z0-9_+][A-Za-z0-9_.+-]*", name):
            found.append(
                f"variant {name!r}: names a folder; use letters, digits and _ . + -, and another "
                f"name than {_START}."
            )
        found += [
            f"variant {name}: {text} changes the classifier or the first labels, which all "
            "variants share; give it to all of them by --set, or run it by itself."
            for text in own
            if not text.startswith(_AFTER_FIRST_LABELS)
        ]
        for seed, classifier in classifiers.items():
            try:
                checked(_request(ablation, name, seed, classifier), ablation.procs)
            except ConfigError as error:
                found += [f"variant {name}: {problem}" for problem in error.problems]
    if found:
        raise ConfigError(list(dict.fromkeys(found)))  # what is wrong with all seeds said once


def _request(ablation: Ablation, name: str, seed: int, classifier: Path | None) -> Request:
    """The run of a variant with a seed, and with the classifier of the seed once it is trained."""
    settings = [*ablation.settings, *ablation.variants[name], f"seed={seed}"]
    run = ablation.run_of(name, seed)
    request = Request(ablation.config_file, settings, run.root)
    if not request.config().classifier.weights:
        known = str(classifier) if classifier else None
        if not known and run.config.exists():  # the classifier will be trained there again
            known = load_config(run.config).classifier.weights
        if known:
            settings.append(f"classifier.weights={json.dumps(known)}")
    return request


def _start_request(ablation: Ablation, seed: int) -> Request:
    """The run that ends with the first labels of a seed."""
    settings = [*ablation.settings, f"seed={seed}", "train.rounds=0"]
    return Request(ablation.config_file, settings, ablation.run_of(_START, seed).root)


def _run_variant(ablation: Ablation, name: str, seed: int, start: RunFolder) -> Outcome:
    run, request = ablation.run_of(name, seed), _request(ablation, name, seed, _classifier(start))
    _copy_first_labels(start, run)
    config = request.config()
    for other in (ablation.run_of(other, seed) for other in ablation.variants if other != name):
        if other.config.exists() and _has_first_network_of(config, other):
            _copy_first_network(other, run)
    return _run(ablation, request)[1]


def _has_first_network_of(config: Config, run: RunFolder) -> bool:
    """True where a run trains the first round as a configuration does."""
    return all(key.startswith(_AFTER_FIRST_ROUND) for key in changed_keys(run, config))


def _run(ablation: Ablation, request: Request) -> tuple[RunFolder, Outcome]:
    run, config = create_run(request, ablation.procs)
    if run.complete.exists():
        return run, Outcome(0)
    print(f"run folder {run.root}", flush=True)
    return run, start_locally(run, config, ablation.procs)


def _classifier(start: RunFolder) -> Path | None:
    """The weights of the classifier that a seed's variants share; None before it is trained."""
    from auxdist.train.checkpoint import WEIGHTS, latest_checkpoint

    found = latest_checkpoint(start, CLASSIFIER_ROUND)
    return found.folder / WEIGHTS if found and found.is_final else None


def _copy_first_labels(start: RunFolder, run: RunFolder) -> None:
    """Labels of round 0 and what was measured of them, each whole or not at all."""
    from auxdist.labels.store import publish_latest

    for source in (*start.evaluations("labels", 0), *start.evaluations("cam", 0)):
        target = run.evaluation(source.stem)
        if not target.exists():
            write_text(target, source.read_text())
    if not (run.labels(0) / MANIFEST_NAME).exists():
        publish_latest(run, 0)
        _copy_folder(start.labels(0), run.labels(0))


def _copy_first_network(source: RunFolder, run: RunFolder) -> None:
    """The network of round 0 and what was measured of it, where `source` has it and `run` none."""
    from auxdist.train.checkpoint import latest_checkpoint

    stage = run.checkpoints(Position(0, 0).stage)
    begun = any(stage.glob("step-*"))
    if begun or not (found := latest_checkpoint(source, 0)) or not found.is_final:
        return
    _copy_folder(found.folder, stage / found.folder.name)
    for measured in source.evaluations("val", 0):  # after the network that it was measured of
        write_text(run.evaluation(measured.stem), measured.read_text())


def _copy_folder(source: Path, target: Path) -> None:
    """Copy a folder, whole or not at all."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        shutil.copytree(source, temporary)
        shutil.rmtree(target, ignore_errors=True)  # what is there is not finished
        os.rename(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise DataError(
            f"{target}: {source.name} cannot be copied there ({error.strerror or error}); free "
            "space or mend the file system, then give the same command again."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class _Result:
    """What one run of a variant has come to.

    figures      mIoU of labels and networks, by round and of the first and last of each
    is_complete  whether it has all that the ablation asks of it; it may be of an earlier call
    error        why it failed for good
    """

    figures: dict[str, float]
    is_complete: bool
    error: str | None


def _results(ablation: Ablation) -> dict[str, list[_Result]]:
    """By variant, of each seed."""
    return {
        name: [_result(ablation, name, run) for run in ablation.runs(name)]
        for name in ablation.variants
    }


def _result(ablation: Ablation, name: str, run: RunFolder) -> _Result:
    settings = [*ablation.settings, *ablation.variants[name]]
    config = Request(ablation.config_file, settings, run.root).config()
    is_complete = run.complete.exists() and not has_more_to_do(run, config)
    failure = read_failure(run)
    return _Result(_figures(run, is_complete), is_complete, failure["error"] if failure else None)


def _table(results: Mapping[str, Sequence[_Result]]) -> str:
    columns = ["first labels", "last labels", "first network", "last network"]
    rows = []
    for name, seeds in results.items():
        means = [_mean(seed.figures.get(column) for seed in seeds) for column in columns]
        complete = sum(seed.is_complete for seed in seeds)
        errors = sorted({seed.error for seed in seeds if seed.error})
        rows.append([name, *means, ", ".join([f"{complete} of {len(seeds)}", *errors])])
    return text_table(["variant", *columns, "seeds"], rows)


def _figures(run: RunFolder, is_complete: bool) -> dict[str, float]:
    found: dict[str, float] = {}
    for kind, title in (("labels", "labels"), ("val", "network")):
        rounds: list[float] = []
        while measured := read_measurement(run, f"{kind}-round-{len(rounds):02d}"):
            found[f"{title} {len(rounds)}"] = measured.miou
            rounds.append(measured.miou)
        if rounds and is_complete:
            found |= {f"first {title}": rounds[0], f"last {title}": rounds[-1]}
    return found


def _mean(values: Iterator[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return NOTHING
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{spread}"


def _listed(settings: Sequence[str]) -> str:
    return ", ".join(f"`{text}`" for text in settings) or "as in the file"
