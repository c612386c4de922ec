"""What label shards are made from, and how finished ones are sealed and listed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from auxdist import __version__
from auxdist.config import Config, GateConfig
from auxdist.errors import DataError
from auxdist.labels.statistics import Statistics, Totals
from auxdist.runfolder import RunFolder, file_sha256, rounds_in, write_json

SCHEMA = 2
MANIFEST_NAME = "manifest.json"
REJECTED_NAME = "manifest.rejected.json"
"""Stands in place of the manifest where the gate did not let the labels pass."""

_MAX_EXAMPLES = 20


@dataclass(frozen=True)
class Provenance:
    """Everything besides the images that the labels of a round depend on."""

    weights_sha256: str
    """Of the weight file of the network that made them."""
    config_sha256: str
    """Of the sections `model` and `labels` of the configuration, and of data.image_scale."""
    code_version: str = __version__
    parent_sha256: str = ""
    """Of the manifest of the labels that these are compared with; empty where there are none."""

    @classmethod
    def of(cls, config: Config, weights_sha256: str) -> Provenance:
        """The provenance of labels that `config` and the weights of that sha256 give."""
        # Where weights once came from, how many bad images are borne and what is let pass changes
        # no label.
        model = replace(config.model, weights=None)
        labels = replace(config.labels, bad_sample_budget=0, gate=GateConfig())
        text = json.dumps([asdict(model), asdict(labels), config.data.image_scale], sort_keys=True)
        return cls(weights_sha256, hashlib.sha256(text.encode()).hexdigest())


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
    statistics: Statistics
    quarantined: dict[str, str] = field(default_factory=dict)
    """Keys of images that could not be read, and why; their label is all ignore."""
    not_finite: tuple[str, ...] = ()
    """Keys of the first images whose CAMs or saliency are not finite; the statistics count all."""


@dataclass(frozen=True)
class Manifest:
    """A finished round of labels. Equal for any number of ranks and restarts, byte for byte."""

    round: int
    parent_round: int
    """The training whose weights made the labels; -1 is the classifier."""
    provenance: Provenance
    shards: tuple[LabelShard, ...]
    statistics: Statistics
    quarantined: dict[str, str]
    not_finite: tuple[str, ...] = ()
    gamma: dict[str, float] = field(default_factory=dict)
    """Learned gates of the unary predictions, by task; empty where the network has none."""

    @property
    def totals(self) -> Totals:
        """Pixels by label."""
        return self.statistics.totals

    @property
    def coverage(self) -> float:
        """Share of the pixels that have a label at all."""
        return self.totals.coverage


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
    round: int,
    provenance: Provenance,
    num_classes: int,
    seals: Iterable[Seal],
    gamma: Mapping[str, float],
) -> Manifest:
    """The manifest of a round from the seals of all its shards, in order."""
    shards: list[LabelShard] = []
    statistics = Statistics.none(num_classes)
    quarantined: dict[str, str] = {}
    not_finite: list[str] = []
    for seal in seals:
        shards.append(seal.shard)
        statistics += seal.statistics
        quarantined |= seal.quarantined
        not_finite += seal.not_finite
    return Manifest(
        round,
        round - 1,
        provenance,
        tuple(shards),
        statistics,
        quarantined,
        first_keys(not_finite),
        dict(gamma),
    )


def first_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """So many keys as are worth keeping as examples."""
    return tuple(islice(keys, _MAX_EXAMPLES))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Finish a round of labels: from now on the folder is accepted by readers."""
    (folder / REJECTED_NAME).unlink(missing_ok=True)  # they are adopted after all
    write_json(folder / MANIFEST_NAME, {"schema": SCHEMA, **asdict(manifest)})


def write_rejection(folder: Path, manifest: Manifest, reasons: list[str]) -> None:
    """Keep the figures of labels that are not adopted, for people; no reader accepts the folder."""
    value = {"schema": SCHEMA, **asdict(manifest), "reasons": reasons}
    write_json(folder / REJECTED_NAME, value)


def manifest_digest(folder: Path) -> str:
    """The sha256 of the manifest of a finished round: of everything that it names."""
    return file_sha256(folder / MANIFEST_NAME)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished round.

    Raises:
        DataError: the folder is not finished, or its manifest is damaged or of another schema.
    """
    return _read_manifest(folder / MANIFEST_NAME)


def finished_manifests(run: RunFolder) -> dict[int, Manifest]:
    """The manifests of the finished rounds of labels of a run, in order.

    Raises:
        DataError: one is damaged.
    """
    folders = {round: run.labels(round) for round in rounds_in(run.labels(0).parent)}
    finished = {r: folder for r, folder in folders.items() if (folder / MANIFEST_NAME).exists()}
    return {round: read_manifest(folder) for round, folder in finished.items()}


def read_rejected(folder: Path) -> Manifest:
    """The manifest of a round that the gate did not let pass.

    Raises:
        DataError: there is none, or it is damaged or of another schema.
    """
    return _read_manifest(folder / REJECTED_NAME)


def _read_manifest(path: Path) -> Manifest:
    try:
        value = _load(path)
        value.pop("reasons", None)
        shards = tuple(LabelShard(**shard) for shard in value["shards"])
        return Manifest(**_typed(value) | {"shards": shards})
    except FileNotFoundError as error:
        raise DataError(
            f"{path.parent}: has no {path.name}, so its labels are not finished; run again to go "
            "on."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: is damaged or of another schema ({error!r}); delete it, and complete.json of "
            "the run if there is one, and run again: finished shards are kept."
        ) from error


def _load(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_bytes())
    if (schema := value.pop("schema")) != SCHEMA:
        raise ValueError(f"schema {schema}, expected {SCHEMA}")
    return value


def _typed(value: dict[str, Any]) -> dict[str, Any]:
    return value | {
        "provenance": Provenance(**value["provenance"]),
        "statistics": Statistics.from_json(value["statistics"]),
        "not_finite": tuple(value["not_finite"]),
    }
