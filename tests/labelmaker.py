"""A tiny network, a label maker without one, and a round of labels, for tests."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from auxdist.config import METHOD_AFFINITY, Config, GateConfig, LabelsConfig, ModelConfig
from auxdist.data.index import Index
from auxdist.data.reader import SourceSample
from auxdist.labels.manifest import Manifest, Provenance
from auxdist.labels.produce import LabelMaker, Production, produce
from auxdist.labels.store import LabelMaps
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.model.builder import build
from auxdist.observe.events import EventLog
from auxdist.runfolder import RunFolder
from auxdist.world import World

LABELS = LabelsConfig(cam_scales=(1.0, 0.5), saliency_crf=False)
PROVENANCE = Provenance.of(Config(), "0" * 64)


def tiny_net(num_classes: int = 3, row_block: int = 0) -> AuxSegNet:
    """A random network with the whole of AuxSegNet+, equal at every call."""
    affinity = METHOD_AFFINITY["auxsegnet+"]
    config = ModelConfig(
        num_classes=num_classes,
        backbone="small",
        small_width=8,
        branch_channels=8,
        affinity=type(affinity)(**{**affinity.__dict__, "row_block": row_block}),
    )
    torch.manual_seed(1)
    net = build(config).eval()
    with torch.no_grad():  # else its maps would be nearly constant
        for task in ("seg_att", "sal_att"):
            net.get_parameter(f"{task}.theta.weight").mul_(5000)
        net.get_parameter("sal_conv4.weight").mul_(100)
    return net


class PlainLabels:
    """Labels from the image alone: fast, and different for every image.

    `before` is called with the number of images made so far. What is darker than `dark` is ignored.
    """

    def __init__(self, before: Callable[[int], None] = lambda number: None, dark: int = 70) -> None:
        self.before = before
        self.dark = dark
        self.num_made = 0

    def make(self, source: SourceSample) -> LabelMaps:
        """Class 1 where the image is bright, ignore where it is dark, which CAMs make class 1."""
        self.before(self.num_made)
        self.num_made += 1
        gray = source.image[..., 0]
        labels = np.where(gray > 100, 1, np.where(gray < self.dark, 255, 0)).astype(np.uint8)
        return LabelMaps(labels, gray.copy(), np.where(labels == 255, 1, labels).astype(np.uint8))


class Slowed:
    """A label maker that takes longer; so that every rank surely gets shards."""

    def __init__(self, maker: LabelMaker, seconds: float) -> None:
        self.maker = maker
        self.seconds = seconds
        self.num_made = 0

    def make(self, source: SourceSample) -> LabelMaps:
        """What the maker makes, later."""
        self.num_made += 1
        time.sleep(self.seconds)
        return self.maker.make(source)


def make_round(
    run: RunFolder,
    index: Index,
    maker: LabelMaker,
    *,
    world: World = World(),  # noqa: B008  (frozen)
    round: int = 0,
    provenance: Provenance = PROVENANCE,
    stop: Callable[[], bool] = lambda: False,
    budget: int = 10,
    gate: GateConfig = GateConfig(),  # noqa: B008  (frozen)
    require_newest: Callable[[], None] = lambda: None,
) -> Manifest:
    """`produce` with the surroundings that most tests share."""
    with EventLog(run, world.rank, io.StringIO()) as events:
        production = Production(run, world, index, events, stop, budget, gate, require_newest)
        return produce(production, round, provenance, maker)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """The content of every file in a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def damage_image(index: Index, shard: int, number: int) -> str:
    """Overwrite the JPEG of a sample in its tar; its key."""
    sample = index.samples(shard)[number]
    member = sample.members["jpg"]
    with (index.root / index.shards[shard].file).open("r+b") as file:
        file.seek(member.offset)
        file.write(b"\0" * member.size)
    return sample.key
