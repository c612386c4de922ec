"""Validation: every message of `validate`, triggered."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from auxdist.config import Config, DataConfig
from auxdist.configfile import config_from_mapping, dump_config, load_config
from auxdist.validation import _RANGES, validate

GOOD = replace(Config(), data=DataConfig(train="shards"))


def told(tmp_path_factory: pytest.TempPathFactory, overrides: Sequence[str]) -> list[str]:
    path = tmp_path_factory.mktemp("config") / "x.yaml"
    path.write_text(dump_config(GOOD))
    return validate(load_config(path, overrides))


def test_the_defaults_with_a_training_folder_are_good() -> None:
    assert validate(GOOD) == []
    assert validate(GOOD, num_ranks=4) == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["train.global_batch=50", "launch.nodes=4", "launch.gpus_per_node=8"],
            [
                "classifier.global_batch is 16, but 4 nodes x 8 GPUs need a multiple of 32; "
                "use 32.",
                "train.global_batch is 50, but 4 nodes x 8 GPUs need a multiple of 32; use 64.",
            ],
        ),
        (
            ["train.global_batch=5", "launch.nodes=2", "launch.procs_per_node=2"],
            ["train.global_batch is 5, but 2 nodes x 2 processes need a multiple of 4; use 8."],
        ),
        (
            ["train.global_batch=16", "launch.gpus_per_node=8", "launch.procs_per_node=4"],
            [
                "launch.procs_per_node is 4, but launch.gpus_per_node is 8 and decides: each GPU "
                "has one process; use 1."
            ],
        ),
        (
            ["data.crop.size=16"],
            ["data.crop.size is 16, but must be at least 32; use e.g. 321."],
        ),
        (
            ["labels.cam_threshold=1.5"],
            ["labels.cam_threshold is 1.5, but must be from 0 to 1; use e.g. 0.2."],
        ),
        (
            ["train.optimiser.learning_rate=0"],
            ["train.optimiser.learning_rate is 0.0, but must be more than 0; use e.g. 0.0007."],
        ),
        (
            ["classifier.optimiser.momentum=1"],
            ["classifier.optimiser.momentum is 1.0, but must be from 0 to below 1; use e.g. 0.9."],
        ),
        (
            ["model.num_classes=255"],
            ["model.num_classes is 255, but must be from 1 to 254; use e.g. 20."],
        ),
        (
            ["name=my run"],
            [
                'name is "my run", but it names folders and jobs; use up to 64 letters, digits and '
                ". _ + - and begin with a letter or digit."
            ],
        ),
        (
            ['data.train=""'],
            ["data.train is empty; give the folder of image shards to learn from."],
        ),
        (['data.val=""'], ["data.val is empty; give a path, or null for none."]),
        (['model.weights=""'], ["model.weights is empty; give a path, or null for none."]),
        (
            ['classifier.weights=""'],
            ["classifier.weights is empty; give a path, or null for none."],
        ),
        (
            ["data.crop.scale_min=2"],
            [
                "data.crop.scale_max is 1.3, less than data.crop.scale_min 2.0; use at least 2.0.",
            ],
        ),
        (
            ["model.affinity.unary_pred=gated", "model.affinity.unary=false"],
            [
                "model.affinity.unary_pred is gated, but model.affinity.unary is false; use "
                'unary_pred: "off", or unary: true.'
            ],
        ),
        (
            ["evaluate.window=32"],
            [
                "evaluate.window is 32, but must be 0, for whole images, or at least 64; use "
                "e.g. 640."
            ],
        ),
        (
            ["launch.time_min=1"],
            [
                "launch.signal_delay_s is 90, but the job has only 1 min; use less than 60, or "
                "more time_min."
            ],
        ),
        (
            ["launch.partition=a b"],
            ['launch.partition is "a b"; use a name without spaces, or null for the default.'],
        ),
        (
            ["launch.account=;"],
            ['launch.account is ";"; use a name without spaces, or null for the default.'],
        ),
        (
            [r'launch.setup=["a\nb"]'],
            [r"launch.setup has the line 'a\nb'; use one shell line for each item."],
        ),
        (["launch.extra.mem=4G"], ["launch.extra has mem; use launch.memory_gb_per_node for it."]),
        (
            ["launch.extra.gpus_per_node=4"],
            ["launch.extra has gpus_per_node; use launch.gpus_per_node for it."],
        ),
        (
            ["launch.extra.-q=high"],
            ['launch.extra has "-q"; use the long name of an sbatch option, such as qos.'],
        ),
        (
            [r'launch.extra.comment="a\nb"'],
            ["launch.extra.comment has several lines; use one line."],
        ),
        (
            ["compute.device=cpu", "launch.gpus_per_node=2"],
            [
                "compute.device is cpu, but launch.gpus_per_node is 2; use device auto or cuda, or "
                "gpus_per_node: 0."
            ],
        ),
    ],
)
def test_a_bad_configuration_is_told_what_to_do(
    tmp_path_factory: pytest.TempPathFactory, overrides: Sequence[str], expected: list[str]
) -> None:
    assert told(tmp_path_factory, overrides) == expected


@pytest.mark.parametrize("key", ["labels.cam_scales", "labels.refresh_scales", "evaluate.scales"])
@pytest.mark.parametrize("scales", ["[]", "[1.0, 0]", "[1.0, -0.5]", "[1.0, 0.5, 1.0]"])
def test_scales_are_positive_and_different(
    tmp_path_factory: pytest.TempPathFactory, key: str, scales: str
) -> None:
    (found,) = told(tmp_path_factory, [f"{key}={scales}"])
    assert found.startswith(f"{key} is [")
    assert "needs one or more different scales above 0; use e.g. [1.0, 0.5, 1.5, 2.0]." in found


@pytest.mark.parametrize("key", sorted(_RANGES))
def test_each_number_is_refused_below_its_range_and_good_at_its_example(
    tmp_path_factory: pytest.TempPathFactory, key: str
) -> None:
    allowed = _RANGES[key]
    below = allowed.low if allowed.open_low else allowed.low - 1
    assert any(
        problem.startswith(f"{key} is {below}") and "but must be" in problem
        for problem in told(tmp_path_factory, [f"{key}={below}"])
    )
    assert allowed.has(allowed.example)
    text = "launch.gpus_per_node=1" if key.startswith("launch.") else "seed=0"
    found = told(tmp_path_factory, [text, f"{key}={allowed.example}"])
    assert not [problem for problem in found if "must be" in problem]


def test_the_number_of_processes_that_will_run_goes_before_that_of_the_launch_section() -> None:
    config = config_from_mapping(
        {"data": {"train": "x"}, "train": {"global_batch": 4}, "launch": {"nodes": 3}}
    )
    assert len(validate(config)) == 2
    assert validate(config, num_ranks=2) == []
    expected = "train.global_batch is 4, but 8 ranks need a multiple of 8; use 8."
    assert validate(config, num_ranks=8) == [expected]


def test_a_classifier_that_is_given_needs_no_divisible_batch() -> None:
    mapping = {"data": {"train": "x"}, "classifier": {"global_batch": 3, "weights": "c.pth"}}
    assert validate(config_from_mapping(mapping), num_ranks=4) == []


def test_all_problems_are_reported_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    overrides = ["seed=-1", "train.rounds=-1", "data.crop.size=8", "name=", "labels.cam_scales=[]"]
    overrides[3] = 'name=""'
    assert len(told(tmp_path_factory, overrides)) == 5


def test_no_number_makes_the_validation_itself_fail() -> None:
    rng = random.Random(0)
    for _ in range(200):
        numbers = {key: rng.choice([-1, 0, 1, 3, 10**9]) for key in _RANGES}
        tree: dict[str, dict[str, int]] = {}
        for key, value in numbers.items():
            section, _, name = key.rpartition(".")
            if section in ("train", "launch", "data", "classifier"):
                tree.setdefault(section, {})[name] = value
        assert validate(config_from_mapping(tree), rng.choice([None, 0, 1, 2, 7]))
