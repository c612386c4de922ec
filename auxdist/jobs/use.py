"""Using the network of a run: measuring it on any split, and looking at images with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from auxdist.config import Config
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
from auxdist.train.networks import final_checkpoint, trained_network
from auxdist.validation import validate
from auxdist.world import World, joined


@dataclass(frozen=True)
class Use:
    """How to use the network of a run.

    round         which one; None: that of the last finished round
    post_process  look at each image at several scales and refine by the CRF
    settings      changes to the run's configuration, evaluate.KEY=VALUE
    """

    round: int | None = None
    post_process: bool = False
    settings: Sequence[str] = ()

    def config(self, run: RunFolder) -> Config:
        """The configuration of the run, with the changes.

        Raises:
            ConfigError: with all problems of the changes.
        """
        foreign = [text for text in self.settings if not text.startswith("evaluate.")]
        if foreign:
            raise ConfigError(
                [
                    f"--set {text}: a finished network is what it is; only keys of the section "
                    "evaluate can be changed here."
                    for text in foreign
                ]
            )
        config = load_config(run.config, self.settings)
        problems = [problem for problem in validate(config) if problem.startswith("evaluate.")]
        if problems:
            raise ConfigError(located(problems, run.config, self.settings))
        return config

    def inference(self, config: Config) -> Inference:
        """How the network looks at images."""
        kind = Inference.post_processed if self.post_process else Inference.single_scale
        return kind(config)


@dataclass(frozen=True)
class Evaluated:
    """A measurement and what was measured."""

    measurement: Measurement
    index: Index
    round: int
    inference: Inference
    is_main: bool
    """True on the one process that should print."""

    def as_json(self) -> dict[str, Any]:
        """For a file: what was measured, how, and the measurement."""
        return {
            "split": str(self.index.root),
            "classes": self.index.classes,
            "round": self.round,
            "inference": asdict(self.inference),
            **self.measurement.as_json(),
        }


def evaluation_of(run: RunFolder, split: Path | None, use: Use) -> tuple[Config, Index, int]:
    """What `evaluate_run` would measure: configuration, split and round; all can be known before.

    Raises:
        ConfigError: `use` changes what it cannot.
        DataError: there is no such split, it has no ground truth, or other classes.
        CheckpointError: no round is finished.
    """
    config = use.config(run)
    folder = split or config.data.val
    if folder is None:
        raise DataError(
            f"{run.config}: data.val is null, so there is no split to measure on; give one with "
            "--split-folder DIR."
        )
    index = load_index(folder)
    _require_fit(index, config)
    return config, index, _round(run, config, use)


def evaluate_run(run: RunFolder, split: Path | None, use: Use) -> Evaluated:
    """Measure the network of a round on a split (None: that of data.val).

    All ranks call this; each gets the whole measurement.

    Raises:
        AuxdistError: as evaluation_of, or the round is not finished.
    """
    config, index, round = evaluation_of(run, split, use)
    use_cpus(config)
    with joined(config.compute.device, config.compute.timeout_s) as world:
        net = _network(run, config, round, world)
        inference = use.inference(config)
        found = measure_predictions(net, index, world, inference=inference)
        return Evaluated(found, index, round, inference, world.is_main)


def predict_images(
    run: RunFolder, images: Sequence[Path], out: Path, use: Use
) -> Iterator[tuple[Path, Path]]:
    """Write labels (palette PNG) and an overlay for each image; yields their paths.

    Raises:
        DataError: an image cannot be read, or a result would overwrite it or another result.
        CheckpointError: the round is not finished.
    """
    config = use.config(run)
    _require_harmless(images, out)
    for path in images:
        _require_readable(path)
    palette = voc_palette(config.model.num_classes)
    use_cpus(config)
    with joined(config.compute.device) as world:
        round = _round(run, config, use)
        net = _network(run, config, round, world)
        for path in images:
            image = decode_image(read_file(path, "image"), path.stem)
            look = partial(predict, net, image, world.device, use.inference(config))
            labels = within_memory(look, str(path), image.shape, TOO_LARGE)
            yield save_prediction(out, path.stem, image, labels, palette)


def _round(run: RunFolder, config: Config, use: Use) -> int:
    """The finished round whose network is to be used."""
    if use.round is None:
        return last_round(run, config)
    if not 0 <= use.round < config.train.rounds:
        raise ConfigError(
            f"--round {use.round}: {run.root} has {config.train.rounds} rounds, counted from 0; "
            "use one of them."
        )
    final_checkpoint(run, use.round)
    return use.round


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


def _network(run: RunFolder, config: Config, round: int, world: World) -> AuxSegNet:
    net = trained_network(run, config, round).net
    return net.to(world.device).eval().requires_grad_(False)


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
