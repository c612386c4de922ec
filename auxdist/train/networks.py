"""Which weights a stage starts from, and which a finished stage left."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from auxdist.config import Config
from auxdist.errors import CheckpointError
from auxdist.model import AuxSegNet, build
from auxdist.model.weights import BACKBONE, CLASSIFIER, apply_weights, from_official, load_weights
from auxdist.pretrained import weight_file
from auxdist.records import CLASSIFIER_ROUND, Position
from auxdist.runfolder import RunFolder
from auxdist.train.checkpoint import Checkpoint, latest_checkpoint


@dataclass(frozen=True)
class Trained:
    """A network whose stage is finished. `sha256` of its weight file names it in manifests."""

    net: AuxSegNet
    sha256: str


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
    if round == CLASSIFIER_ROUND and config.classifier.weights:
        return _imported_classifier(config, Path(config.classifier.weights))
    net = build(replace(config.model, weights=None))  # the checkpoint has every tensor
    checkpoint = final_checkpoint(run, round)
    net.load_state_dict(checkpoint.weights())
    return Trained(net, checkpoint.weights_sha256)


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
    if config.model.weights and not config.model.is_fetched:
        path = weight_file(config.model.weights)
        state = from_official(load_weights(path))
        if "fc8.weight" in state and len(state["fc8.weight"]) != config.model.num_classes:
            del state["fc8.weight"]  # a classifier of other classes: its backbone serves
        apply_weights(net, state, BACKBONE, str(path))
    return net


def _imported_classifier(config: Config, path: Path) -> Trained:
    net = _fresh_network(config)
    apply_weights(net, from_official(load_weights(path)), CLASSIFIER, str(path))
    with path.open("rb") as file:
        return Trained(net, hashlib.file_digest(file, "sha256").hexdigest())
