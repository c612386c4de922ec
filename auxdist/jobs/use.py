"""Using a network: measuring it on any split, and looking at images with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from auxdist.config import METHOD_AFFINITY, Config
from auxdist.configfile import load_config, located
from auxdist.data.index import INDEX_NAME, Index, load_index
from auxdist.data.palette import voc_palette
from auxdist.data.photos import read_file
from auxdist.data.reader import decode_image
from auxdist.errors import CheckpointError, ConfigError, DataError
from auxdist.evaluate.confusion import Measurement
from auxdist.evaluate.measure import TOO_LARGE, measure_predictions, require_ground_truth
from auxdist.evaluate.pictures import prediction_files, save_prediction
from auxdist.evaluate.predict import Inference, predict
from auxdist.jobs.job import use_cpus
from auxdist.memory import within_memory
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.runfolder import RunFolder
from auxdist.train.checkpoint import latest_checkpoint
from auxdist.train.networks import (
    final_checkpoint,
    network_of_file,
    require_weights_of_all,
    trained_network,
)
from auxdist.validation import validate
from auxdist.world import World, joined

_PLAIN = asdict(METHOD_AFFINITY["auxsegnet"])


@dataclass(frozen=True)
class Subject:
    """A network to be used, what it is called, and what names it in a file."""

    net: AuxSegNet
    title: str
    names: dict[str, Any]


class Source(Protocol):
    """Where the network to be used comes from."""

    @property
    def file(self) -> Path:
        """Its configuration file."""
        ...

    def config(self, settings: Sequence[str]) -> Config:
        """The configuration of the network, with the changes.

        Raises:
            ConfigError: with all problems of the changes.
        """
        ...

    def require(self, config: Config) -> None:
        """Return if there is such a network, as far as that can be told without making it.

        Raises:
            ConfigError: there can be no such network.
            CheckpointError: it is not there yet, or damaged.
        """
        ...

    def subject(self, config: Config) -> Subject:
        """The network.

        Raises:
            ConfigError, CheckpointError: as `require`.
        """
        ...


@dataclass(frozen=True)
class OfRun:
    """The network that a round of a run left; None: that of the last finished round."""

    run: RunFolder
    round: int | None = None

    @property
    def file(self) -> Path:
        """That of the run."""
        return self.run.config

    def config(self, settings: Sequence[str]) -> Config:
        """That of the run; only the section evaluate may change."""
        foreign = [text for text in settings if not text.startswith("evaluate.")]
        if foreign:
            raise ConfigError(
                [
                    f"--set {text}: a finished network is what it is; only keys of the section "
                    "evaluate can be changed here."
                    for text in foreign
                ]
            )
        return _checked_config(self.file, settings, "evaluate.")

    def require(self, config: Config) -> None:
        """Look for the checkpoint that ended the round."""
        final_checkpoint(self.run, self.chosen(config))

    def subject(self, config: Config) -> Subject:
        """The network of a finished round."""
        round = self.chosen(config)
        net = trained_network(self.run, config, round).net
        return Subject(net, f"round {round}", {"round": round})

    def chosen(self, config: Config) -> int:
        """The round of the network: as asked for, or the last one by now.

        Raises:
            ConfigError: the run has no such round.
            CheckpointError: no round is finished yet.
        """
        if self.round is None:
            return last_round(self.run, config)
        if not 0 <= self.round < config.train.rounds:
            raise ConfigError(
                f"--round {self.round}: {self.run.root} has {config.train.rounds} rounds, counted "
                "from 0; use one of them."
            )
        return self.round


@dataclass(frozen=True)
class OfFile:
    """The network of a configuration file with the weights of a file, published ones for instance.

    The file must have every tensor of the network.
    """

    file: Path
    weights: Path

    def config(self, settings: Sequence[str]) -> Config:
        """The configuration file; anything may change."""
        sections = ("model.", "data.image_scale ", "evaluate.")
        return _checked_config(self.file, settings, *sections)

    def require(self, config: Config) -> None:
        """Compare the file with the network by names and shapes."""
        require_weights_of_all(config, self.weights)

    def subject(self, config: Config) -> Subject:
        """The network with these weights."""
        net = network_of_file(config, self.weights)
        affinity = asdict(config.model.affinity)
        changed = [f"{name} {value}" for name, value in affinity.items() if value != _PLAIN[name]]
        title = f"{self.weights}, affinity {', '.join(changed) or 'as in auxsegnet'},"
        return Subject(net, title, {"weights": str(self.weights), "affinity": affinity})


def _checked_config(file: Path, settings: Sequence[str], *sections: str) -> Config:
    config = load_config(file, settings)
    if problems := [problem for problem in validate(config) if problem.startswith(sections)]:
        raise ConfigError(located(problems, file, settings))
    return config


@dataclass(frozen=True)
class Use:
    """How to use a network.

    source        where it comes from
    post_process  look at each image at several scales and refine by the CRF
    settings      changes to the configuration
    """

    source: Source
    post_process: bool = False
    settings: Sequence[str] = ()

    def config(self) -> Config:
        """The configuration, with the changes."""
        return self.source.config(self.settings)

    def inference(self, config: Config) -> Inference:
        """How the network looks at images."""
        kind = Inference.post_processed if self.post_process else Inference.single_scale
        return kind(config)


@dataclass(frozen=True)
class Evaluated:
    """A measurement and what was measured."""

    measurement: Measurement
    index: Index
    subject: Subject
    inference: Inference
    is_main: bool
    """True on the one process that should print."""

    def as_json(self) -> dict[str, Any]:
        """For a file: what was measured, how, and the measurement."""
        return {
            "split": str(self.index.root),
            "classes": self.index.classes,
            **self.subject.names,
            "inference": asdict(self.inference),
            **self.measurement.as_json(),
        }


def evaluation_of(split: Path | None, use: Use) -> tuple[Config, Index]:
    """How and on what `evaluate_split` would measure.

    Raises:
        ConfigError: `use` changes what it cannot.
        DataError: there is no such split, it has no ground truth, or other classes.
    """
    config = use.config()
    folder = split or config.data.val
    if folder is None:
        raise DataError(
            f"{use.source.file}: data.val is null, so there is no split to measure on; give one "
            "with --split-folder DIR."
        )
    index = load_index(folder)
    _require_fit(index, config)
    return config, index


def evaluate_split(split: Path | None, use: Use) -> Evaluated:
    """Measure a network on a split (None: that of data.val).

    All ranks call this; each gets the whole measurement.

    Raises:
        AuxdistError: as evaluation_of, or the network is not there.
    """
    config, index = evaluation_of(split, use)
    subject = use.source.subject(config)
    use_cpus(config)
    with joined(config.compute.device, config.compute.timeout_s) as world:
        inference = use.inference(config)
        net = _ready(subject, world)
        found = measure_predictions(net, index, world, inference=inference)
        return Evaluated(found, index, subject, inference, world.is_main)


def predict_images(images: Sequence[Path], out: Path, use: Use) -> Iterator[tuple[Path, Path]]:
    """Write labels (palette PNG) and an overlay for each image; yields their paths.

    Raises:
        DataError: an image cannot be read, or a result would overwrite it or another result.
        ConfigError, CheckpointError: there can be no such network, or it is not there.
    """
    config = use.config()
    _require_harmless(images, out)
    for path in images:
        _require_readable(path)
    palette = voc_palette(config.model.num_classes)
    subject = use.source.subject(config)
    use_cpus(config)
    with joined(config.compute.device) as world:
        net = _ready(subject, world)
        for path in images:
            image = decode_image(read_file(path, "image"), path.stem)
            look = partial(predict, net, image, world.device, use.inference(config))
            labels = within_memory(look, str(path), image.shape, TOO_LARGE)
            yield save_prediction(out, path.stem, image, labels, palette)


def last_round(run: RunFolder, config: Config) -> int:
    """The last round whose training is finished.

    Raises:
        CheckpointError: none is.
    """
    for round in reversed(range(config.train.rounds)):
        checkpoint = latest_checkpoint(run, round)
        if checkpoint is not None and checkpoint.is_final:
            return round
    raise CheckpointError(
        f"{run.root}: no round is finished yet; let the run go on, `auxdist status` shows where "
        "it stands."
    )


def _ready(subject: Subject, world: World) -> AuxSegNet:
    return subject.net.to(world.device).eval().requires_grad_(False)


def _require_fit(index: Index, config: Config) -> None:
    """Return if a split can be measured on: the classes of training, and a ground truth."""
    if len(index.classes) != config.model.num_classes:
        raise DataError(
            f"{index.root}: has {len(index.classes)} classes, but the network "
            f"{config.model.num_classes}; build the split with the class list of training."
        )
    if (Path(config.data.train) / INDEX_NAME).exists():  # a run may be used far from its images
        known = load_index(config.data.train).classes
        if index.classes != known:
            raise DataError(
                f"{index.root}: its classes are {', '.join(index.classes)}, but the network "
                f"learned {', '.join(known)}; build the split with the class list of training."
            )
    require_ground_truth(index)


def _require_harmless(images: Sequence[Path], out: Path) -> None:
    """Return if no result overwrites another one, or an image."""
    given = {path.resolve(): path for path in images}
    stems: dict[str, Path] = {}
    for path in images:
        if path.stem in stems:
            raise DataError(
                f"{path}: its result would overwrite that of {stems[path.stem]}; predict them with "
                "different --out folders."
            )
        stems[path.stem] = path
        for result in prediction_files(out, path.stem):
            if image := given.get(result.resolve()):
                raise DataError(
                    f"{image}: the result of {path} would overwrite it; use another --out folder."
                )


def _require_readable(path: Path) -> None:
    """Return if an image file is there; whether it can be decoded shows when its turn comes."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the path of an image file."
        ) from error
