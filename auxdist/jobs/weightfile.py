"""Published weights -> a file of a network's own names, with a report of what fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from auxdist.config import ModelConfig
from auxdist.errors import CheckpointError, ConfigError
from auxdist.model import build_shapes
from auxdist.model.weights import (
    BACKBONE,
    WeightReport,
    compare_weights,
    from_official,
    load_weights,
)
from auxdist.pretrained import weight_file
from auxdist.runfolder import atomic_file


@dataclass(frozen=True)
class Import:
    """What was read from `source`: `num_read` tensors, of which `num_dropped` are never used."""

    source: Path
    num_read: int
    num_dropped: int
    report: WeightReport

    def text(self) -> str:
        """The report, a line for each tensor that does not fit."""
        report = self.report
        lines = [
            f"{self.source}: {self.num_read} tensors",
            f"  dropped     {self.num_dropped:4}  (published, but never used)",
            f"  matched     {len(report.matched):4}",
            f"  missing     {len(report.missing):4}  (training starts them at random)",
            *(f"    {name}" for name in report.missing),
            f"  unexpected  {len(report.unexpected):4}  (not in this network, left out)",
            *(f"    {name}" for name in report.unexpected),
        ]
        return "\n".join(lines)


def import_file(source: str, config: ModelConfig, out: Path) -> Import:
    """Write what a network of `config` can use of a weight file, or of "imagenet".

    Raises:
        CheckpointError: `source` is damaged, holds no such backbone, or a tensor has another shape.
        ConfigError: `out` is not a .safetensors; "imagenet" is wanted, but not installed.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out}: weights are written as .safetensors; use such a name.")
    path = weight_file(source)
    published = load_weights(path)
    state = from_official(published)
    _check_classes(path, state, config)
    report = compare_weights(build_shapes(config), state, BACKBONE, str(path))
    tensors = {name: state[name].float().contiguous() for name in report.matched}
    with atomic_file(out) as temporary:
        temporary.write_bytes(save(tensors))
    return Import(path, len(published), len(published) - len(state), report)


def _check_classes(path: Path, state: Mapping[str, Tensor], config: ModelConfig) -> None:
    found = len(state["fc8.weight"]) if "fc8.weight" in state else config.num_classes
    if found != config.num_classes:
        raise CheckpointError(
            f"{path}: tensor fc8.weight has {found} classes, but model.num_classes is "
            f"{config.num_classes}; use a configuration of {found} classes. The backbone of a "
            "classifier serves any number: give its file as it is as model.weights."
        )
