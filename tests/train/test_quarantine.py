"""Samples that training cannot read: counted over ranks and restarts, and anew in every epoch."""

from dataclasses import replace
from pathlib import Path

import pytest
from labelmaker import damage_image
from ranks import run_ranks
from smallrun import StopAfter, do_tasks, make_data, small_config

from auxdist.config import Config
from auxdist.data.index import load_index
from auxdist.errors import DataError, Stopped
from auxdist.observe.events import read_events
from auxdist.records import CLASSIFIER_ROUND
from auxdist.runfolder import RunFolder
from auxdist.train.guard import StopFlag
from auxdist.train.networks import final_checkpoint
from auxdist.world import World


def test_samples_past_the_budget_stop_the_stage(tmp_path: Path) -> None:
    make_data(tmp_path)
    for tar in (tmp_path / "train").glob("*.tar"):
        content = bytearray(tar.read_bytes())
        for start in range(0, len(content), 512):
            content[start : start + 40] = bytes(40)  # no member starts with its own magic any more
        tar.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"data\.bad_sample_budget is 10"):
        do_tasks(RunFolder(tmp_path / "run"), small_config(tmp_path), World())
    assert len(quarantined(RunFolder(tmp_path / "run"))) > 10


def classifier_of(root: Path, budget: int, num_bad: int, epochs: int = 3) -> Config:
    """A configuration whose classifier meets so many bad images an epoch."""
    make_data(root)
    for number in range(num_bad):
        damage_image(load_index(root / "train"), number % 4, number // 4)
    config = small_config(root)
    return replace(
        config,
        data=replace(config.data, bad_sample_budget=budget),
        classifier=replace(config.classifier, epochs=epochs),
    )


def test_the_budget_of_bad_samples_is_that_of_an_epoch(tmp_path: Path) -> None:
    config = classifier_of(tmp_path, budget=2, num_bad=2)
    run = RunFolder(tmp_path / "run")
    do_tasks(run, config, World(), ("train classifier",))
    assert final_checkpoint(run, CLASSIFIER_ROUND).position.step == 9
    assert len(quarantined(run)) == 3 * 2


def train_classifier(world: World, root: str, config: Config, stop: StopFlag | None = None) -> str:
    """What ended it."""
    try:
        do_tasks(RunFolder(Path(root)), config, world, ("train classifier",), stop)
    except (DataError, Stopped) as error:
        return str(error)
    return "no error"


def test_bad_samples_before_a_restart_count(tmp_path: Path) -> None:
    config = classifier_of(tmp_path, budget=1, num_bad=2, epochs=1)
    run = RunFolder(tmp_path / "run")
    found = [train_classifier(World(), str(run.root), config, StopAfter(1)) for _ in range(3)]
    assert any("2 samples of an epoch could not be read, the budget" in text for text in found)


def test_bad_samples_of_all_ranks_count(tmp_path: Path) -> None:
    config = classifier_of(tmp_path, budget=5, num_bad=6)
    run = RunFolder(tmp_path / "run")
    errors = run_ranks(2, train_classifier, str(run.root), config)
    assert all("6 samples of an epoch could not be read" in error for error in errors)
    each = [len(quarantined(run, rank)) for rank in (0, 1)]
    assert sum(each) == 6
    assert max(each) < 6, "the test would show nothing"


def quarantined(run: RunFolder, rank: int = 0) -> list[str]:
    """Keys of the bad samples that a rank met, again in every epoch."""
    records = read_events(run, rank)
    return [key for record in records if record["kind"] == "quarantine" for key in record["keys"]]
