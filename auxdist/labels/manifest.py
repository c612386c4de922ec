"""What label shards are made from, and how finished ones are sealed and listed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from auxdist import __version__
from auxdist.config import Config
from auxdist.errors import DataError
from auxdist.records import IGNORE
from auxdist.runfolder import write_json

SCHEMA = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Provenance:
    """Everything besides the images that the labels of a round depend on."""

    weights_sha256: str
    """Of the weight file of the network that made them."""
    config_sha256: str
    """Of the sections `model` and `labels` of the configuration."""
    code_version: str = __version__

    @classmethod
    def of(cls, config: Config, weights_sha256: str) -> Provenance:
        """The provenance of labels that `config` and the weights of that sha256 give."""
        # Where weights once came from and how many bad images are borne changes no label.
        model = replace(config.model, weights=None)
        labels = replace(config.labels, bad_sample_budget=0)
        text = json.dumps([asdict(model), asdict(labels)], sort_keys=True)
        return cls(weights_sha256, hashlib.sha256(text.encode()).hexdigest())


@dataclass(frozen=True)
class Totals:
    """Pixels by label: `classes[c]` those of class c. Sums of integers, so their order is free."""

    pixels: int
    background: int
    ignore: int
    classes: tuple[int, ...]

    @classmethod
    def of(cls, labels: np.ndarray, num_classes: int) -> Totals:
        """Count (H, W) uint8 labels 0..C and 255."""
        counts = np.bincount(labels.ravel(), minlength=256).tolist()
        found = tuple(counts[1 : num_classes + 1])
        return cls(labels.size, counts[0], counts[IGNORE], found)

    @classmethod
    def none(cls, num_classes: int) -> Totals:
        """No pixels at all."""
        return cls(0, 0, 0, (0,) * num_classes)

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.pixels + other.pixels,
            self.background + other.background,
            self.ignore + other.ignore,
            tuple(a + b for a, b in zip(self.classes, other.classes, strict=True)),
        )


@dataclass(frozen=True)
class LabelShard:
    """One label tar; `image_sha256` is that of the image tar that it belongs to."""

    file: str
    bytes: int
    sha256: str
    num_samples: int
    table_sha256: str
    image_sha256: str


@dataclass(frozen=True)
class Seal:
    """Written beside a label tar when it is whole; without it the tar counts as half-written."""

    round: int
    provenance: Provenance
    shard: LabelShard
    totals: Totals
    quarantined: dict[str, str] = field(default_factory=dict)
    """Keys of images that could not be read, and why; their label is all ignore."""


@dataclass(frozen=True)
class Manifest:
    """A finished round of labels. Equal for any number of ranks and restarts, byte for byte."""

    round: int
    parent_round: int
    """The training whose weights made the labels; -1 is the classifier."""
    provenance: Provenance
    shards: tuple[LabelShard, ...]
    totals: Totals
    quarantined: dict[str, str]

    @property
    def coverage(self) -> float:
        """Share of the pixels that have a label at all."""
        return 1 - self.totals.ignore / max(self.totals.pixels, 1)


def seal_path(tar: Path) -> Path:
    """The seal of a label tar: `name-000000.tar` has `name-000000.seal.json`."""
    return tar.with_suffix(".seal.json")


def write_seal(tar: Path, seal: Seal) -> None:
    """Seal a label tar, atomically."""
    write_json(seal_path(tar), {"schema": SCHEMA, **asdict(seal)})


def read_seal(tar: Path) -> Seal | None:
    """The seal of a label tar; None where there is none, or none that can be understood."""
    try:
        value = _load(seal_path(tar))
        return Seal(**_typed(value) | {"shard": LabelShard(**value["shard"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def collect(
    round: int, provenance: Provenance, num_classes: int, seals: Iterable[Seal]
) -> Manifest:
    """The manifest of a round from the seals of all its shards, in order."""
    shards: list[LabelShard] = []
    totals = Totals.none(num_classes)
    quarantined: dict[str, str] = {}
    for seal in seals:
        shards.append(seal.shard)
        totals += seal.totals
        quarantined |= seal.quarantined
    return Manifest(round, round - 1, provenance, tuple(shards), totals, quarantined)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Finish a round of labels: from now on the folder is accepted by readers."""
    write_json(folder / MANIFEST_NAME, {"schema": SCHEMA, **asdict(manifest)})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished round.

    Raises:
        DataError: the folder is not finished, or its manifest is damaged or of another schema.
    """
    path = folder / MANIFEST_NAME
    try:
        value = _load(path)
        shards = tuple(LabelShard(**shard) for shard in value["shards"])
        return Manifest(**_typed(value) | {"shards": shards})
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: has no {MANIFEST_NAME}, so its labels are not finished; run again to go on."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: is damaged or of another schema than {SCHEMA} ({error!r}); delete it and run "
            "again: finished shards are kept."
        ) from error


def _load(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_bytes())
    if value.pop("schema") != SCHEMA:
        raise ValueError("schema")
    return value


def _typed(value: dict[str, Any]) -> dict[str, Any]:
    totals = {**value["totals"], "classes": tuple(value["totals"]["classes"])}
    return value | {
        "provenance": Provenance(**value["provenance"]),
        "totals": Totals(**totals),
    }
