"""What a run measures by itself: every image, and those that there are now."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from shardmaker import make_shards
from smallrun import SIZE, do_tasks, make_data, small_config

from auxdist.config import Config
from auxdist.configfile import dump_config
from auxdist.data.index import load_index
from auxdist.jobs.submit import has_more_to_do
from auxdist.runfolder import RunFolder, write_text
from auxdist.world import World


@pytest.fixture
def config(tmp_path: Path) -> Config:
    make_data(tmp_path)
    return small_config(tmp_path, epochs=1)


def test_a_cut_shard_ends_no_run_by_being_measured(config: Config, tmp_path: Path) -> None:
    """Within the budget; neither the last image nor its ground truth can be read."""
    index = load_index(config.data.train)
    last = index.samples(3)[-1]
    first_byte = min(member.offset for member in last.members.values())
    os.truncate(index.root / index.shards[3].file, first_byte)
    run = RunFolder(tmp_path / "run")
    do_tasks(run, config, World())
    for name in ("cam-round-00", "labels-round-00", "labels-round-01"):
        found = json.loads(run.evaluation(name).read_text())
        assert found["num_images"] == index.num_samples
        assert found["void_pixels"] >= SIZE[0] * SIZE[1]


def test_a_split_that_was_built_anew_is_measured_anew(config: Config, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    write_text(run.config, dump_config(config))
    do_tasks(run, config, World())
    val, labels = run.evaluation("val-round-00"), run.evaluation("labels-round-00")
    before = [path.read_text() for path in (val, labels)]
    assert not has_more_to_do(run, config)
    make_shards(tmp_path / "other", 9, 2, 3, SIZE, seed=2, saliency=False)
    config = replace(config, data=replace(config.data, val=str(tmp_path / "other")))
    assert has_more_to_do(run, config)
    assert not has_more_to_do(run, replace(config, data=replace(config.data, val=None)))
    do_tasks(run, config, World())
    assert json.loads(val.read_text())["matrix"] != json.loads(before[0])["matrix"]
    assert labels.read_text() == before[1]
    assert not has_more_to_do(run, config)
    val.write_text("{")  # damaged
    assert has_more_to_do(run, config)
