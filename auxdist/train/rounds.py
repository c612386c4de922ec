"""The rounds of a run as a list of tasks, each done or not done by what is on disk.

classifier -> labels 0 -> for every round s: (train s -> validate s -> refresh to labels s+1)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from auxdist.config import Config, TrainConfig
from auxdist.data.index import Index, load_index
from auxdist.data.plan import Plan
from auxdist.data.stream import LabelSource, batches
from auxdist.errors import CheckpointError, DataError, NodeFault
from auxdist.evaluate.confusion import Measurement
from auxdist.evaluate.measure import measure_labels, measure_predictions
from auxdist.evaluate.panels import save_panels
from auxdist.evaluate.predict import Inference
from auxdist.labels.initial import InitialLabels
from auxdist.labels.manifest import MANIFEST_NAME, Provenance
from auxdist.labels.produce import Production, produce
from auxdist.labels.refresh import RefinedLabels
from auxdist.labels.store import LabelMember, LabelSet, open_labels
from auxdist.labels.viewer import Viewer
from auxdist.memory import free_memory
from auxdist.model.objective import ClassifierObjective, SegmentationObjective
from auxdist.observe.events import EventLog
from auxdist.records import CLASSIFIER_ROUND, Batch, Position
from auxdist.runfolder import RunFolder, write_json
from auxdist.train.checkpoint import Checkpoint, latest_checkpoint, open_checkpoint
from auxdist.train.engine import Trainee
from auxdist.train.engines import make_engine
from auxdist.train.guard import Fence, StopFlag
from auxdist.train.loop import Stage, Surroundings
from auxdist.train.networks import Trained, starting_network, trained_network
from auxdist.world import World


@dataclass(frozen=True)
class Task:
    """A step of the run. `is_done` looks at the disk; `do` is called on all ranks."""

    name: str
    is_done: Callable[[], bool]
    do: Callable[[], None]


def run_all(run: RunFolder, config: Config, world: World, stop: StopFlag, fence: Fence) -> None:
    """Do every task of the run that is not done yet, on all ranks together.

    Raises:
        Stopped: a stop was asked for and everything is saved; the same call goes on.
    """
    around = Surroundings(run, world, EventLog(run, world.rank), stop, fence)
    for task in Rounds(around, config).tasks():
        # The main rank decides: another node may not see a new file yet.
        if world.from_main(int(world.is_main and task.is_done())):
            continue
        around.fence.check()
        around.events.write("task", name=task.name, what="started")
        task.do()
        free_memory()  # the network of a stage must not stand beside that of the next
        world.barrier()
        around.events.write("task", name=task.name, what="finished")


class Rounds:
    """What a run consists of."""

    def __init__(self, around: Surroundings, config: Config) -> None:
        self._around = around
        self._config = config
        self._index = load_index(config.data.train)
        self._val = load_index(config.data.val) if config.data.val else None

    def tasks(self) -> list[Task]:
        """All tasks in their order."""
        tasks = [] if self._config.classifier.weights else [self._train(CLASSIFIER_ROUND)]
        tasks += [self._make_labels(0), *self._measure_labels(0)]
        for round in range(self._config.train.rounds):
            tasks += [self._train(round), *self._validate(round)]
            if self._config.labels.refresh:
                tasks += [self._make_labels(round + 1), *self._measure_labels(round + 1)]
        return [*tasks, self._draw_examples()]

    def _train(self, round: int) -> Task:
        def is_done() -> bool:
            checkpoint = latest_checkpoint(self._around.run, round)
            return checkpoint is not None and checkpoint.is_final

        return Task(f"train {Position(round, 0).stage}", is_done, lambda: self._train_stage(round))

    def _make_labels(self, round: int) -> Task:
        folder = self._around.run.labels(round)
        return Task(
            f"labels {folder.name}",
            (folder / MANIFEST_NAME).exists,
            lambda: self._produce(round),
        )

    def _validate(self, round: int) -> list[Task]:
        if (val := self._val) is None:
            return []

        inference = Inference.single_scale(self._config)

        def measure() -> Measurement:
            net = self._evaluated(round).net
            return measure_predictions(net, val, self._around.world, self._stop, inference)

        return [self._measurement(f"val-round-{round:02d}", val, measure, inference)]

    def _measure_labels(self, round: int) -> list[Task]:
        if not (self._index.ground_truth and self._config.data.measure_labels):
            return []
        members: dict[str, LabelMember] = {"labels": "seg.png"}
        if round == 0:
            members["cam"] = "cam.png"

        def measurement(name: str, member: LabelMember) -> Task:
            def measure() -> Measurement:
                return measure_labels(self._labels(round), member, self._around.world, self._stop)

            return self._measurement(f"{name}-round-{round:02d}", self._index, measure)

        return [measurement(name, member) for name, member in members.items()]

    def _measurement(
        self,
        name: str,
        index: Index,
        measure: Callable[[], Measurement],
        inference: Inference | None = None,
    ) -> Task:
        """What was measured with another `inference`, or on other images, is not done."""
        path = self._around.run.evaluation(name)
        facts: dict[str, Any] = {"name": name, "classes": index.classes, "images": index.sha256}
        if inference:
            facts["inference"] = json.loads(json.dumps(asdict(inference)))  # tuples are lists there

        def is_done() -> bool:
            if not path.exists():
                return False
            try:
                found = json.loads(path.read_text())
            except ValueError:  # damaged
                return False
            same = (found.get(key) in (None, facts.get(key)) for key in ("inference", "images"))
            return all(same)

        def do() -> None:
            result = measure()
            if self._around.world.is_main:
                self._around.fence.check()
                self._around.events.write("measure", name=name, **result.figures())
                write_json(path, {**facts, **result.as_json()})

        return Task(f"measure {name}", is_done, do)

    def _draw_examples(self) -> Task:
        path = self._around.run.examples

        def do() -> None:
            last = self._config.labels_of(self._config.train.rounds)
            rounds = [self._labels(round) for round in range(last + 1)]
            with self._around.world.failing_together():
                if self._around.world.is_main:
                    save_panels(path, self._index, rounds)

        return Task("examples", path.exists, do)

    def _stop(self) -> bool:
        return self._around.stop.is_set

    def _labels(self, round: int) -> LabelSet:
        return open_labels(self._around.run.labels(round), self._index, self._around.world)

    def _evaluated(self, round: int) -> Trained:
        """The network that the stage of `round` left, ready to look at images."""
        trained = trained_network(self._around.run, self._config, round)
        trained.net.to(self._around.world.device).eval().requires_grad_(False)
        return trained

    def _produce(self, round: int) -> None:
        world, config = self._around.world, self._config
        trained = self._evaluated(round - 1)
        viewer = Viewer(trained.net, world.device, config.data.image_scale, config.labels.precision)
        maker_type = RefinedLabels if round else InitialLabels
        production = Production(
            self._around.run,
            world,
            self._index,
            self._around.events,
            self._stop,
            config.labels.bad_sample_budget,
            config.labels.gate,
            self._around.fence.check,
        )
        provenance = Provenance.of(config, trained.sha256)
        produce(
            production,
            round,
            provenance,
            maker_type(viewer, config.labels),
            trained.net.gates() if round else {},
        )

    def _train_stage(self, round: int) -> None:
        is_classifier = round == CLASSIFIER_ROUND
        config = self._classifier_config() if is_classifier else self._config.train
        plan = self._plan(round, config)
        checkpoint = self._agreed_checkpoint(round)
        net = starting_network(self._around.run, self._config, round)
        if checkpoint is not None:
            self._require_same_images(checkpoint)
            net.load_state_dict(checkpoint.weights())
        net.to(self._around.world.device).train()
        objective = ClassifierObjective(net) if is_classifier else SegmentationObjective(net)
        momentum = checkpoint.momentum() if checkpoint else {}
        groups = objective.parameter_groups()
        trainee = Trainee(net, objective, groups, config.optimiser, momentum)
        engine = make_engine(trainee, config, self._around.world)
        stage = Stage(
            self._around,
            config,
            engine,
            start=checkpoint.position if checkpoint else Position(round, 0),
            total_steps=plan.total_steps,
            steps_per_epoch=plan.steps_per_epoch,
            bad_sample_budget=self._config.data.bad_sample_budget,
            images_sha256=self._index.sha256,
            quarantined=checkpoint.quarantined if checkpoint else 0,
        )
        labels = None if is_classifier else self._labels(self._config.labels_of(round))
        # Closed at once, whatever happens: its reader processes would outlive an error for seconds.
        with closing(self._batches(plan, labels, stage.start.step)) as stream:
            stage.train(stream)
        engine.close()  # not after an error: it may wait for ranks that are gone

    def _require_same_images(self, checkpoint: Checkpoint) -> None:
        """Return if a stage can go on: its steps count in the order of the images it began with."""
        if checkpoint.images_sha256 not in ("", self._index.sha256):
            raise DataError(
                f"{checkpoint.folder}: was trained on other images than are now in "
                f"{self._index.root}; give the shards that the run began with, delete the folder "
                f"{checkpoint.folder.parent} to train this stage anew, or begin a new run."
            )

    def _classifier_config(self) -> TrainConfig:
        """The training of the classifier, in the form of that of a round."""
        own = self._config.classifier
        return replace(
            self._config.train,
            epochs=own.epochs,
            global_batch=own.global_batch,
            optimiser=own.optimiser,
        )

    def _plan(self, round: int, config: TrainConfig) -> Plan:
        data = self._config.data
        return Plan(
            shard_sizes=self._index.shard_sizes(labelled_only=data.skip_unlabelled),
            seed=self._config.seed,
            round=round,
            epochs=config.epochs,
            global_batch=config.global_batch,
            shuffle_shards=data.shuffle_shards,
            last_batch=config.last_batch,
        )

    def _batches(
        self, plan: Plan, labels: LabelSource | None, first_step: int
    ) -> Generator[Batch, None, None]:
        world = self._around.world
        return batches(
            self._index,
            plan,
            self._config.data,
            labels,
            rank=world.rank,
            size=world.size,
            first_step=first_step,
            pin_memory=world.device.startswith("cuda"),
        )

    def _agreed_checkpoint(self, round: int) -> Checkpoint | None:
        """The checkpoint from which all ranks go on: the newest that the main rank finds."""
        world, run = self._around.world, self._around.run
        newest = latest_checkpoint(run, round) if world.is_main else None
        step = world.from_main(newest.position.step if newest else -1)
        if step < 0:
            return None
        try:
            return newest or open_checkpoint(run.checkpoint(Position(round, 0).stage, step))
        except CheckpointError as error:
            raise NodeFault(
                f"{error} The main rank finds it whole, and this node may not see all of it yet; "
                "SLURM starts the job again; elsewhere give the same command again."
            ) from error
