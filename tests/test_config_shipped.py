"""The shipped configurations are good, and say what they claim to say."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from auxdist.config import METHOD_AFFINITY, Config
from auxdist.configfile import dump_config, load_config
from auxdist.data.plan import Plan
from auxdist.validation import validate

CONFIGS = Path(__file__).parents[1] / "configs"
SHIPPED = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


def shipped(name: str) -> Config:
    return load_config(CONFIGS / name)


def steps_of_a_round(config: Config, num_samples: int) -> int:
    plan = Plan(
        shard_sizes=np.asarray([num_samples]),
        seed=config.seed,
        round=0,
        epochs=config.train.epochs,
        global_batch=config.train.global_batch,
        shuffle_shards=config.data.shuffle_shards,
        last_batch=config.train.last_batch,
    )
    return plan.total_steps


def test_the_shipped_files_are_those_that_the_tests_know() -> None:
    assert SHIPPED == [
        "clusters/example.yaml",
        "coco-mini.yaml",
        "coco.yaml",
        "demo.yaml",
        "voc-mini.yaml",
        "voc.yaml",
    ]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_is_good_and_written_back_equal(name: str, tmp_path: Path) -> None:
    config = shipped(name)
    assert validate(config) == []
    whole = METHOD_AFFINITY[config.model.method]  # what lost where it was measured is not shipped
    assert config.model.affinity == replace(whole, unary=False, unary_pred="off")
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_the_demo_runs_on_any_small_number_of_processes(num_ranks: int) -> None:
    assert validate(shipped("demo.yaml"), num_ranks) == []


def test_the_demo_is_small_and_needs_no_gpu() -> None:
    config = shipped("demo.yaml")
    assert (config.model.backbone, config.compute.device) == ("small", "cpu")
    assert config.train.rounds >= 3
    assert config.compute.threads_per_rank == 1


def test_voc_is_the_published_schedule() -> None:
    config = shipped("voc.yaml")
    optimiser = config.train.optimiser
    assert steps_of_a_round(config, 10_582) == 39_675
    assert (config.train.rounds, config.train.epochs, config.train.global_batch) == (4, 15, 4)
    assert (optimiser.learning_rate, optimiser.head_factor, optimiser.power) == (7e-4, 10, 0.9)
    assert (optimiser.momentum, optimiser.weight_decay) == (1e-5, 0)
    crop, labels = config.data.crop, config.labels
    assert (crop.size, crop.scale_min, crop.scale_max, crop.scale_per) == (321, 0.7, 1.3, "batch")
    assert (crop.flip_probability, crop.pad_label, config.data.image_scale) == (0.5, 0, 1)
    assert (labels.cam_scales, labels.cam_flip) == ((1, 0.5, 1.5, 2), True)
    assert (labels.refresh_scales, labels.refresh_flip, labels.saliency_crf) == ((1,), False, True)
    assert (labels.cam_threshold, labels.saliency_threshold) == (0.2, 0.06)
    assert (config.evaluate.scales, config.evaluate.crf) == ((0.5, 0.75, 1, 1.25, 1.5), True)
    assert (config.model.backbone, config.model.num_classes) == ("resnet38", 20)
    assert (config.model.branch_channels, config.train.last_batch) == (128, "drop")


def test_coco_fits_4_nodes_of_8_gpus_with_the_rate_scaled_linearly() -> None:
    config, voc = shipped("coco.yaml"), shipped("voc.yaml")
    assert (config.launch.num_ranks, config.model.num_classes, config.train.epochs) == (32, 80, 5)
    assert config.train.precision == "bf16"
    factor = config.train.global_batch / voc.train.global_batch
    rate = voc.train.optimiser.learning_rate * factor
    assert config.train.optimiser.learning_rate == pytest.approx(rate, rel=1e-12)


def test_the_cluster_example_is_coco_with_a_cluster() -> None:
    config, coco = shipped("clusters/example.yaml"), shipped("coco.yaml")
    assert (config.train, config.data, config.model) == (coco.train, coco.data, coco.model)
    assert (config.launch.partition, config.launch.extra) == ("gpu", {"qos": "normal"})


def test_reading_and_checking_a_configuration_does_not_import_torch() -> None:
    code = (
        "import sys; from auxdist.configfile import load_config; "
        "from auxdist.validation import validate; "
        f"validate(load_config({str(CONFIGS / 'demo.yaml')!r})); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
