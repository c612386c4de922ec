"""What a configuration must fulfil beyond its types. Opens no file and knows no shards."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from auxdist.config import (
    IMAGENET,
    AffinityConfig,
    BranchesConfig,
    Config,
    LaunchConfig,
    OptimiserConfig,
)
from auxdist.records import MAX_CLASSES


def validate(config: Config, num_ranks: int | None = None) -> list[str]:
    """Every problem of a configuration, as text that begins with the key; empty when it is good.

    `num_ranks` is the number of processes that will run; without it that of the launch section.
    """
    checks = (
        _ranges(config),
        _name(config),
        _folders(config),
        _crop(config),
        _affinity(config),
        _weights(config),
        _scales("labels.cam_scales", config.labels.cam_scales),
        _scales("labels.refresh_scales", config.labels.refresh_scales),
        _scales("evaluate.scales", config.evaluate.scales),
        _window(config),
        _batches(config, num_ranks),
        _launch(config.launch),
        _sbatch_options(config.launch),
        _device(config),
    )
    return [problem for check in checks for problem in check]


@dataclass(frozen=True)
class _Range:
    """Numbers from `low` to `high`; `open_low` leaves out `low` itself. `example` is a good one."""

    low: float
    high: float
    example: float
    open_low: bool = False
    open_high: bool = False

    def has(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    @property
    def text(self) -> str:
        if self.high == math.inf:
            return f"more than {self.low}" if self.open_low else f"at least {self.low}"
        return f"from {self.low} to {'below ' * self.open_high}{self.high}"


def _from(low: float, example: float) -> _Range:
    return _Range(low, math.inf, example)


def _above(low: float, example: float) -> _Range:
    return _Range(low, math.inf, example, open_low=True)


def _optimiser_ranges(section: str, default: OptimiserConfig) -> dict[str, _Range]:
    return {
        f"{section}.optimiser.learning_rate": _above(0, default.learning_rate),
        f"{section}.optimiser.head_factor": _above(0, default.head_factor),
        f"{section}.optimiser.power": _from(0, default.power),
        f"{section}.optimiser.momentum": _Range(0, 1, default.momentum, open_high=True),
        f"{section}.optimiser.weight_decay": _from(0, default.weight_decay),
    }


_RANGES: dict[str, _Range] = {
    "seed": _Range(0, 2**63 - 1, 0),
    "data.shuffle_shards": _from(1, 16),
    "data.workers": _from(0, 2),
    "data.bad_sample_budget": _from(0, 10),
    "data.image_scale": _above(0, 1),
    "data.crop.size": _from(32, 321),
    "data.crop.scale_min": _above(0, 0.7),
    "data.crop.flip_probability": _Range(0, 1, 0.5),
    "model.num_classes": _Range(1, MAX_CLASSES, 20),
    "model.small_width": _from(8, 32),
    "model.branch_channels": _from(1, 128),
    "model.affinity.row_block": _from(0, 0),
    "classifier.epochs": _from(1, 15),
    "classifier.global_batch": _from(1, 16),
    **_optimiser_ranges("classifier", Config().classifier.optimiser),
    "labels.cam_threshold": _Range(0, 1, 0.2),
    "labels.saliency_threshold": _Range(0, 1, 0.06),
    "labels.bad_sample_budget": _from(0, 10),
    "labels.gate.max_fall": _Range(0, 1, 0.5),
    "labels.gate.takeover_share": _Range(0, 1, 0.9),
    "train.rounds": _from(0, 4),
    "train.epochs": _from(1, 15),
    "train.global_batch": _from(1, 4),
    "train.micro_batch": _from(0, 0),
    "train.checkpoint_every_steps": _from(1, 500),
    "train.keep_checkpoints": _from(1, 2),
    "train.log_every_steps": _from(1, 20),
    **_optimiser_ranges("train", Config().train.optimiser),
    "compute.threads_per_rank": _from(0, 0),
    "compute.timeout_s": _above(0, 1800),
    "launch.nodes": _from(1, 4),
    "launch.gpus_per_node": _from(0, 8),
    "launch.procs_per_node": _from(1, 1),
    "launch.cpus_per_proc": _from(1, 1),
    "launch.memory_gb_per_node": _from(0, 0),
    "launch.time_min": _from(1, 1440),
    "launch.signal_delay_s": _from(1, 90),
    "launch.max_restarts": _from(0, 3),
}


def _ranges(config: Config) -> Iterator[str]:
    for key, allowed in _RANGES.items():
        value = attrgetter(key)(config)
        if not allowed.has(value):
            yield f"{key} is {value}, but must be {allowed.text}; use e.g. {allowed.example}."


def _name(config: Config) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", config.name):
        yield (
            f'name is "{config.name}", but it names folders and jobs; use up to 64 letters, digits '
            "and . _ + - and begin with a letter or digit."
        )


def _folders(config: Config) -> Iterator[str]:
    if not config.data.train:
        yield "data.train is empty; give the folder of image shards to learn from."
    for key in ("data.val", "model.weights", "classifier.weights"):
        if attrgetter(key)(config) == "":
            yield f"{key} is empty; give a path, or null for none."


def _crop(config: Config) -> Iterator[str]:
    crop = config.data.crop
    if crop.scale_max < crop.scale_min:
        yield (
            f"data.crop.scale_max is {crop.scale_max}, less than data.crop.scale_min "
            f"{crop.scale_min}; use at least {crop.scale_min}."
        )


def _affinity(config: Config) -> Iterator[str]:
    yield from contradictions(config.model.affinity, config.model.branches)


def contradictions(affinity: AffinityConfig, branches: BranchesConfig) -> Iterator[str]:
    """Switches of the network that cannot be set together."""
    if affinity.unary_pred != "off" and not affinity.unary:
        yield (
            f"model.affinity.unary_pred is {affinity.unary_pred}, but model.affinity.unary is "
            'false; use unary_pred: "off", or unary: true.'
        )
    if affinity.unary_pred != "off" and affinity.predictions == "off":
        yield (
            f"model.affinity.unary_pred is {affinity.unary_pred}, but model.affinity.predictions "
            'is off; use unary_pred: "off", or predictions: cross.'
        )
    if affinity.unary and affinity.unary_pred == "off" and not affinity.features:
        yield (
            "model.affinity.unary is true, but neither features nor predictions use it; use "
            "unary: false, or model.affinity.features: true."
        )
    if affinity.predictions == "cross" and not branches.saliency:
        yield (
            "model.affinity.predictions is cross, but model.branches.saliency is false, so there "
            "is one task only; use predictions: own."
        )


def _weights(config: Config) -> Iterator[str]:
    backbone = config.model.backbone
    if config.model.weights == IMAGENET and backbone not in ("efficientnet-lite0", "timm"):
        yield (
            f"model.weights is {IMAGENET}, but no package brings such weights of {backbone}; use "
            "backbone: efficientnet-lite0, a file of weights, or null."
        )
    if (backbone == "timm") != bool(config.model.timm_name):
        yield (
            f"model.timm_name is {config.model.timm_name}, but model.backbone is {backbone}; a "
            "name belongs to backbone: timm, and only to it."
        )


def _scales(key: str, scales: tuple[float, ...]) -> Iterator[str]:
    good = [scale for scale in scales if scale > 0]
    if not scales or len(good) < len(scales) or len(set(scales)) < len(scales):
        yield (
            f"{key} is {list(scales)}, but needs one or more different scales above 0; "
            "use e.g. [1.0, 0.5, 1.5, 2.0]."
        )


def _window(config: Config) -> Iterator[str]:
    window = config.evaluate.window
    if window != 0 and window < 64:
        yield (
            f"evaluate.window is {window}, but must be 0, for whole images, or at least 64; use "
            "e.g. 640."
        )


def _batches(config: Config, num_ranks: int | None) -> Iterator[str]:
    ranks = config.launch.num_ranks if num_ranks is None else num_ranks
    if ranks < 1:
        if num_ranks is not None:
            yield f"--procs is {num_ranks}, but a run needs a process; use e.g. 1."
        return
    trains_classifier = config.classifier.weights is None
    for key in ("classifier.global_batch",) * trains_classifier + ("train.global_batch",):
        batch = attrgetter(key)(config)
        if batch >= 1 and batch % ranks:
            words = _ranks_in_words(config.launch, ranks)
            better = math.ceil(batch / ranks) * ranks
            yield f"{key} is {batch}, but {words} need a multiple of {ranks}; use {better}."


def _ranks_in_words(launch: LaunchConfig, ranks: int) -> str:
    if launch.num_ranks != ranks or ranks == 1:
        return f"{ranks} ranks"
    unit = "GPUs" if launch.gpus_per_node else "processes"
    return f"{launch.nodes} nodes x {launch.procs_on_node} {unit}"


def _launch(launch: LaunchConfig) -> Iterator[str]:
    if launch.signal_delay_s >= launch.time_min * 60:
        yield (
            f"launch.signal_delay_s is {launch.signal_delay_s}, but the job has only "
            f"{launch.time_min} min; use less than {launch.time_min * 60}, or more time_min."
        )
    if launch.gpus_per_node and launch.procs_per_node not in (1, launch.gpus_per_node):
        yield (
            f"launch.procs_per_node is {launch.procs_per_node}, but launch.gpus_per_node is "
            f"{launch.gpus_per_node} and decides: each GPU has one process; use 1."
        )
    for key in ("partition", "account"):
        value = getattr(launch, key)
        if value is not None and not re.fullmatch(r"[\w.,@+-]+", value):
            yield f'launch.{key} is "{value}"; use a name without spaces, or null for the default.'
    for line in launch.setup:
        if "\n" in line or not line.strip():
            yield f"launch.setup has the line {line!r}; use one shell line for each item."


_OWN_OPTIONS = {
    "nodes": "launch.nodes",
    "gpus-per-node": "launch.gpus_per_node",
    "ntasks-per-node": "launch.procs_per_node",
    "cpus-per-task": "launch.cpus_per_proc",
    "mem": "launch.memory_gb_per_node",
    "partition": "launch.partition",
    "account": "launch.account",
    "time": "launch.time_min",
    "signal": "launch.signal_delay_s",
    "job-name": "name",
}
"""sbatch options that have a field of their own."""


def _sbatch_options(launch: LaunchConfig) -> Iterator[str]:
    for name, value in launch.extra.items():
        option = name.replace("_", "-")
        if option in _OWN_OPTIONS:
            yield f"launch.extra has {name}; use {_OWN_OPTIONS[option]} for it."
        elif not re.fullmatch(r"[a-z][a-z0-9-]*", option):
            yield f'launch.extra has "{name}"; use the long name of an sbatch option, such as qos.'
        if "\n" in value:
            yield f"launch.extra.{name} has several lines; use one line."


def _device(config: Config) -> Iterator[str]:
    if config.compute.device == "cpu" and config.launch.gpus_per_node > 0:
        yield (
            f"compute.device is cpu, but launch.gpus_per_node is {config.launch.gpus_per_node}; "
            "use device auto or cuda, or gpus_per_node: 0."
        )
