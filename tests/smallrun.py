"""A run small enough for tests: tiny shards, a tiny network, every part real."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from shardmaker import make_shards

from auxdist.config import Config
from auxdist.configfile import config_from_mapping
from auxdist.jobs.job import raise_fence
from auxdist.observe.events import EventLog
from auxdist.runfolder import RunFolder
from auxdist.train.guard import StopFlag
from auxdist.train.loop import Surroundings
from auxdist.train.rounds import Rounds
from auxdist.world import World

SIZE = (40, 48)


def make_data(root: Path, *, ground_truth: bool = True) -> None:
    """Shards for `small_config`."""
    make_shards(root / "train", 22, 4, 3, SIZE, ground_truth=ground_truth)
    make_shards(root / "val", 9, 2, 3, SIZE, seed=1, saliency=False)


def small_config(root: Path, *, rounds: int = 1, epochs: int = 2, momentum: float = 0.9) -> Config:
    """6 steps an epoch, 4 samples a step but 2 in the last, log of every step."""
    optimiser = {"learning_rate": 0.005, "momentum": momentum}
    return config_from_mapping(
        {
            "data": {
                "train": str(root / "train"),
                "val": str(root / "val"),
                "workers": 0,
                "crop": {"size": 32},
            },
            "model": {
                "num_classes": 3,
                "backbone": "small",
                "small_width": 8,
                "branch_channels": 16,
            },
            "classifier": {"epochs": 1, "global_batch": 8, "optimiser": optimiser},
            # a dozen steps teach nothing: whatever labels come are to be taken
            "labels": {
                "cam_scales": [1.0, 0.5],
                "saliency_crf": False,
                "gate": {"enabled": False},
            },
            "train": {
                "rounds": rounds,
                "epochs": epochs,
                "global_batch": 4,
                "last_batch": "pad",
                "checkpoint_every_steps": 3,
                "log_every_steps": 1,
                "log_keys": True,
                "optimiser": optimiser,
            },
            "compute": {"device": "cpu", "threads_per_rank": 1},
        }
    )


def do_tasks(
    run: RunFolder,
    config: Config,
    world: World,
    names: Sequence[str] = (),
    stop: StopFlag | None = None,
) -> None:
    """Do the open tasks of a run, or those of these names, in this process."""
    torch.set_num_threads(1)
    fence = raise_fence(run, world)
    with EventLog(run, world.rank, console=io.StringIO()) as events:
        around = Surroundings(run, world, events, stop or StopFlag(), fence)
        for task in Rounds(around, config).tasks():
            is_wanted = not names or task.name in names
            if is_wanted and not world.from_main(int(world.is_main and task.is_done())):
                task.do()
                world.barrier()


class StopAfter(StopFlag):
    """A stop that comes by itself once it was looked at `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    @property
    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


def file_bytes(folder: Path, keep: Callable[[Path], bool] = lambda _: True) -> dict[str, bytes]:
    """Contents of all files below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and keep(path)
    }
