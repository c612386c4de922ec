"""A run as TensorBoard shows it: written from what lies in its folder, like the report."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from auxdist.config import Config
from auxdist.configfile import load_config
from auxdist.errors import ConfigError
from auxdist.evaluate.tables import read_measurement
from auxdist.labels.manifest import finished_manifests
from auxdist.observe.events import steps_by_round
from auxdist.records import Position
from auxdist.runfolder import RunFolder


def write_tensorboard(run: RunFolder) -> Path:
    """Write the curves of a run anew, finished or not; their folder comes back.

    Stages lie on one another with their own steps; labels and validation go by rounds.

    Raises:
        ConfigError: TensorBoard is not installed.
        DataError: a measurement or a manifest is damaged.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"TensorBoard cannot be imported ({error}); run pip install -e '.[tensorboard]' where "
            "auxdist is checked out."
        ) from error
    config = load_config(run.config)
    shutil.rmtree(run.tensorboard, ignore_errors=True)
    for round, records in steps_by_round(run).items():
        with SummaryWriter(run.tensorboard / Position(round, 0).stage) as writer:
            for record in records:
                _add(writer, _scalars(record), record["step"], record["time"])
    with SummaryWriter(run.tensorboard / "rounds") as writer:
        for round in range(config.last_round + 1):
            _add(writer, _measured(run, config, round), round)
        for round, manifest in finished_manifests(run).items():
            shares = manifest.statistics.summary()
            names = ("ignore", "background", "changed", "agreement", "mixing_mean", "mixing_std")
            _add(writer, {f"labels/{name}": shares[name] for name in names}, round)
            _add(writer, {f"gamma/{task}": value for task, value in manifest.gamma.items()}, round)
    return run.tensorboard


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    names = ("loss", "gradient_norm", "decay", "images_per_s")
    found = {f"training/{name}": record[name] for name in names if name in record}
    return found | {f"loss/{name}": value for name, value in record.get("parts", {}).items()}


def _measured(run: RunFolder, config: Config, round: int) -> dict[str, float]:
    names = {"labels": config.labels_of(round), "val": round}
    found = {n: read_measurement(run, f"{n}-round-{at:02d}") for n, at in names.items()}
    return {f"mIoU/{name}": value.miou for name, value in found.items() if value}


def _add(
    writer: Any, values: Mapping[str, float | None], step: int, time: float | None = None
) -> None:
    for name, value in values.items():
        if value is not None and math.isfinite(value):
            writer.add_scalar(name, value, step, walltime=time)
