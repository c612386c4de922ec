"""Everything about a run that can be known before it starts, checked at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from auxdist.config import Config
from auxdist.data.index import Index, Shard, load_index, table_path
from auxdist.errors import ConfigError, DataError
from auxdist.runfolder import RunFolder
from auxdist.validation import validate

_PARAMETERS = {"resnet38": 116e6, "efficientnet-lite0": 8e6, "small": 2e6, "timm": 100e6}
"""Parameters of the networks, roughly and rather too many."""
_LABEL_BYTES = 60_000
"""Size of the pseudo labels of one image (segmentation and 8-bit saliency), rather too large."""


def problems(config: Config, num_ranks: int | None, run: RunFolder) -> list[str]:
    """Every reason why a run cannot work, as far as it shows without a GPU; empty when it can.

    Each begins with the key it is about, where it is about one.
    """
    found = [*validate(config, num_ranks), *_packages(config)]
    found += _network(config, [problem for problem in found if problem.startswith("model.")])
    if config.data.train:
        found += _shards(config, run)
    return found


def random_start(config: Config) -> str:
    """A warning where a large backbone starts from nothing; empty where it does not."""
    if config.model.weights or config.classifier.weights or config.model.backbone == "small":
        return ""
    return (
        f"model.weights is null: {config.model.backbone} starts at random, and learns little from "
        "image-level labels alone; docs/reproduce.md says where there are weights."
    )


def warnings_of(config: Config) -> Iterator[str]:
    """What a job of this configuration may be meant to be, but hardly is."""
    if warning := random_start(config):
        yield warning
    yield from _torch_without_gpus(config)


def sbatch_problems(config: Config) -> Iterator[str]:
    """Why no job can be submitted from this host and environment."""
    if not shutil.which("sbatch"):
        yield (
            "sbatch: not found on this host; run launch/slurm.py on a login node of the cluster, "
            "or use --dry-run here, or launch/local.py to train on this machine."
        )
    yield from _torch_without_gpus(config)


def _torch_without_gpus(config: Config) -> Iterator[str]:
    gpus = config.launch.gpus_per_node
    if gpus and config.compute.device != "cpu" and (torch := version("torch")).endswith("+cpu"):
        yield (
            f"launch.gpus_per_node is {gpus}, but the torch of this environment, {torch}, is built "
            "for CPUs; install one for the GPUs of the cluster."
        )


def _packages(config: Config) -> Iterator[str]:
    if config.train.engine == "deepspeed" and find_spec("deepspeed") is None:
        yield (
            "train.engine is deepspeed, but DeepSpeed is not installed; run pip install "
            "-e '.[deepspeed]' where auxdist is checked out, or use ddp."
        )


def _network(config: Config, found: Sequence[str]) -> Iterator[str]:
    """What is wrong with the network and its weights, besides what was `found` by settings."""
    if any(problem.startswith("model.weights ") for problem in found):
        config = replace(config, model=replace(config.model, weights=None))
    named = config.model.weights or config.classifier.weights
    if not named and config.model.backbone != "timm":
        return  # nothing to compare, so no need of torch, which takes seconds
    from auxdist.model import build, build_shapes
    from auxdist.train.networks import weight_problems

    net = None
    try:
        if not found:
            # Of timm only making it tells; that fetches its weights, if wanted.
            make = build if config.model.backbone == "timm" else build_shapes
            net = make(config.model)
    except ConfigError as error:
        yield str(error)
    yield from weight_problems(config, net)


def _shards(config: Config, run: RunFolder) -> list[str]:
    found: list[str] = []
    train = _open("data.train", config.data.train, found)
    val = _open("data.val", config.data.val, found) if config.data.val else None
    if train:
        found += [*_classes(config, train), *_contents(config, train), *_space(config, train, run)]
    if val and not val.ground_truth:
        found.append(
            f"data.val is {val.root}, but its shards have no ground truth; build them from a split "
            "with masks, or use null for no validation."
        )
    if train and val:
        found += _same_classes(train, val)
    return found


def _open(key: str, folder: str, found: list[str]) -> Index | None:
    try:
        index = load_index(folder)
    except DataError as error:
        found.append(f"{key} is {folder}: {error}")
        return None
    bad = [shard.file for shard in index.shards if not _is_whole(index.root / shard.file, shard)]
    if bad:
        found.append(
            f"{key} is {folder}, but {len(bad)} of its {len(index.shards)} shards are missing or "
            f"not whole, the first is {bad[0]}; copy or build them again."
        )
        return None
    return index


def _is_whole(tar: Path, shard: Shard) -> bool:
    """Whether a shard is there with its table and as long as it should be; nothing is read."""
    try:
        return tar.stat().st_size == shard.bytes and table_path(tar).is_file()
    except OSError:
        return False


def _classes(config: Config, train: Index) -> Iterator[str]:
    if len(train.classes) != config.model.num_classes:
        yield (
            f"model.num_classes is {config.model.num_classes}, but the shards in {train.root} have "
            f"{len(train.classes)} classes; use {len(train.classes)}."
        )


def _contents(config: Config, train: Index) -> Iterator[str]:
    usable = train.num_labelled if config.data.skip_unlabelled else train.num_samples
    if usable == 0:
        yield f"data.train is {train.root}, but it has no image to learn from; build it anew."
        return
    try:
        shard = next(number for number, entry in enumerate(train.shards) if entry.num_samples)
        first = train.samples(shard)[0]
    except DataError as error:
        yield f"data.train is {train.root}: {error}"
        return
    if "sal.png" not in first.members:
        yield (
            f"data.train is {train.root}, but sample {first.key} has no saliency map; build the "
            "shards with a saliency folder, --saliency-model FILE.onnx or the plain estimator."
        )
    yield from _short_batches(config, usable)


def _short_batches(config: Config, usable: int) -> Iterator[str]:
    if config.train.last_batch == "pad":
        return
    batches = {"train.global_batch": config.train.global_batch} if config.train.rounds else {}
    if config.classifier.weights is None:
        batches["classifier.global_batch"] = config.classifier.global_batch
    for key, batch in batches.items():
        if batch > usable:
            yield (
                f"{key} is {batch}, but data.train has only {usable} images to learn from and "
                f"train.last_batch is drop, so no step is left; use at most {usable}, or pad."
            )


def _same_classes(train: Index, val: Index) -> Iterator[str]:
    if train.classes == val.classes:
        return
    pairs = zip(train.classes, val.classes, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if at is None:
        detail = f"{len(val.classes)} classes there, {len(train.classes)} in {train.root}"
    else:
        detail = (
            f'class {at + 1} is "{val.classes[at]}" there, "{train.classes[at]}" in {train.root}'
        )
    yield f"data.val is {val.root}, but {detail}; build both splits with the same class list."


def _space(config: Config, train: Index, run: RunFolder) -> Iterator[str]:
    label_rounds = config.labels_of(config.train.rounds) + 1
    labels = train.num_samples * _LABEL_BYTES * label_rounds
    # Weights and momentum: those kept within a stage, and the last one of each.
    kept = config.train.keep_checkpoints + config.train.rounds + 1
    checkpoints = _PARAMETERS[config.model.backbone] * 4 * 2 * kept
    needed = labels + checkpoints
    folder = next(path for path in [run.root, *run.root.absolute().parents] if path.is_dir())
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize + _bytes_below(run.root)
    if free < needed:
        yield (
            f"{folder}: {free / 1e9:.1f} GB free, but the run may need {needed / 1e9:.1f} GB "
            f"({labels / 1e9:.1f} GB labels, {checkpoints / 1e9:.1f} GB checkpoints); free space, "
            "or use --run with a folder on another disk."
        )


def _bytes_below(folder: Path) -> int:
    """What a run folder already holds of what it will need; not what a rollback set aside."""
    aside = RunFolder(folder).set_aside
    files = (path for path in folder.rglob("*") if aside not in path.parents)
    return sum(path.lstat().st_size for path in files if path.is_file())
