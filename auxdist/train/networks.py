"""Which weights a stage starts from, and which a finished stage left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from auxdist.config import Config
from auxdist.errors import CheckpointError, ConfigError
from auxdist.model import AuxSegNet, build, build_shapes
from auxdist.model.weights import (
    BACKBONE,
    CLASSIFIER,
    WeightReport,
    apply_weights,
    compare_weights,
    from_official,
    load_weights,
)
from auxdist.pretrained import weight_file
from auxdist.records import CLASSIFIER_ROUND, Position
from auxdist.runfolder import RunFolder, file_sha256
from auxdist.train.checkpoint import Checkpoint, latest_checkpoint


@dataclass(frozen=True)
class Trained:
    """A network whose stage is finished. `sha256` of its weight file names it in manifests."""

    net: AuxSegNet
    sha256: str


@dataclass(frozen=True)
class _Published:
    """Tensors of a weight file by our names, and the beginnings of those that it must have."""

    file: Path
    state: dict[str, Tensor]
    required: tuple[str, ...]

    def compare(self, net: AuxSegNet) -> WeightReport:
        return compare_weights(net, self.state, self.required, str(self.file))

    def apply(self, net: AuxSegNet) -> None:
        apply_weights(net, self.state, self.required, str(self.file))


def weight_problems(config: Config, net: AuxSegNet | None) -> Iterator[str]:
    """Why the weight files that a configuration names do not serve; each begins with its key.

    Without the network, which may have no values, they are only read.
    """
    for key, read in (("model.weights", _backbone), ("classifier.weights", _classifier)):
        try:
            published = read(config)
            if published and net is not None:
                published.compare(net)
        except CheckpointError as error:
            yield f"{key} is {error}"
        except ConfigError as error:  # ImageNet's are not installed
            yield str(error)


def starting_network(run: RunFolder, config: Config, round: int) -> AuxSegNet:
    """The network with which the stage of `round` begins: what the stage before it left."""
    if round == CLASSIFIER_ROUND:
        return _fresh_network(config)
    return trained_network(run, config, round - 1).net


def trained_network(run: RunFolder, config: Config, round: int) -> Trained:
    """The network that the finished stage of `round` left.

    Raises:
        CheckpointError: the stage is not finished, or its checkpoint is damaged.
    """
    if round == CLASSIFIER_ROUND and (classifier := _classifier(config)):
        return _imported(config, classifier)
    net = build(replace(config.model, weights=None))  # the checkpoint has every tensor
    checkpoint = final_checkpoint(run, round)
    net.load_state_dict(checkpoint.weights())
    return Trained(net, checkpoint.weights_sha256)


def network_of_file(config: Config, file: Path) -> AuxSegNet:
    """The network of a configuration with the weights of a file, which must be those of it all.

    Raises:
        CheckpointError: the file is damaged, or of another network.
    """
    net = build(replace(config.model, weights=None))
    _weights_of_all(net, file).apply(net)
    return net


def require_weights_of_all(config: Config, file: Path) -> None:
    """Return if `network_of_file` would succeed, by names and shapes alone.

    Raises:
        CheckpointError: as there.
    """
    _weights_of_all(build_shapes(config.model), file)


def _weights_of_all(net: AuxSegNet, file: Path) -> _Published:
    published = _Published(file, from_official(load_weights(file)), ("",))
    if unknown := published.compare(net).unexpected:
        raise CheckpointError(
            f"{file}: {len(unknown)} tensors are none of this network, {unknown[0]} the first; use "
            "the configuration that they were trained with."
        )
    return published


def final_checkpoint(run: RunFolder, round: int) -> Checkpoint:
    """The last checkpoint of a finished stage.

    Raises:
        CheckpointError: the stage is not finished, or its checkpoint is damaged.
    """
    checkpoint = latest_checkpoint(run, round)
    if checkpoint is None or not checkpoint.is_final:
        stage = Position(round, 0).stage
        raise CheckpointError(f"{run.checkpoints(stage)}: {stage} is not finished yet.")
    return checkpoint


def _fresh_network(config: Config) -> AuxSegNet:
    """The untrained network, equal on all ranks and at every call."""
    torch.manual_seed(config.seed)
    net = build(config.model)
    if backbone := _backbone(config):
        backbone.apply(net)
    return net


def _imported(config: Config, classifier: _Published) -> Trained:
    net = _fresh_network(config)
    classifier.apply(net)
    return Trained(net, file_sha256(classifier.file))


def _backbone(config: Config) -> _Published | None:
    """What the network starts from, if from a file."""
    if config.model.weights is None or config.model.is_fetched:
        return None
    file = weight_file(config.model.weights)
    state = from_official(load_weights(file))
    if "fc8.weight" in state and len(state["fc8.weight"]) != config.model.num_classes:
        del state["fc8.weight"]  # a classifier of other classes: its backbone serves
    return _Published(file, state, BACKBONE)


def _classifier(config: Config) -> _Published | None:
    """The classifier that need not be trained, if there is one."""
    if config.classifier.weights is None:
        return None
    file = Path(config.classifier.weights)
    return _Published(file, from_official(load_weights(file)), CLASSIFIER)
