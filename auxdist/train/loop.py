"""Training of one stage, from where its newest checkpoint stands to its last step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from auxdist.config import TrainConfig
from auxdist.errors import ConfigError, DataError, Diverged, Stopped
from auxdist.memory import is_out_of_memory
from auxdist.model.losses import count
from auxdist.observe.events import EventLog
from auxdist.records import Batch, Losses, Normaliser, Position
from auxdist.runfolder import RunFolder
from auxdist.train.checkpoint import prune_checkpoints, save_checkpoint
from auxdist.train.engine import Engine
from auxdist.train.guard import Fence, StopFlag
from auxdist.train.optimiser import poly
from auxdist.world import World


@dataclass(frozen=True)
class Surroundings:
    """What every stage of a run is given: where it writes, who takes part, when to stop."""

    run: RunFolder
    world: World
    events: EventLog
    stop: StopFlag
    fence: Fence


@dataclass(frozen=True)
class Consensus:
    """What all ranks know of the next global batch, by one small sum over them."""

    normaliser: Normaliser
    is_stopping: bool
    quarantined: int


@dataclass
class Stage:
    """One training: `total_steps` updates from `start` on."""

    around: Surroundings
    config: TrainConfig
    engine: Engine
    start: Position
    total_steps: int
    steps_per_epoch: int
    bad_sample_budget: int
    images_sha256: str
    """Names the images, for the checkpoints."""
    quarantined: int = 0
    """Samples of this epoch that could not be read so far, over all ranks and restarts."""
    meter: Meter = field(init=False)
    _saved: int = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self)
        self._saved = self.start.step

    def train(self, batches: Iterator[Batch]) -> None:
        """Run the remaining steps and save the last state.

        Raises:
            Stopped: a stop was asked for; the state was saved first.
            Diverged: a loss or gradient is not finite; the newest checkpoint is from before it.
            DataError: more samples could not be read than the budget allows.
            ConfigError: so many samples at once do not fit into memory.
        """
        for step, batch in enumerate(batches, start=self.start.step):
            consensus = self._agree(batch)
            if consensus.is_stopping:
                self._save(step)
                raise Stopped(f"{self.start.stage}: saved at step {step}/{self.total_steps}.")
            self._count_quarantined(step, batch, consensus)
            decay = poly(step, self.total_steps, self.config.optimiser.power)
            with self._within_memory(batch):
                if step == self.start.step:
                    self._warm_up(batch, consensus.normaliser)
                losses = self._accumulate(batch, consensus.normaliser)
                norm = self._update(step, batch, decay)
            self.meter.log(step, batch, losses, decay, norm)
            if (step + 1) % self.config.checkpoint_every_steps == 0 or step + 1 == self.total_steps:
                self._save(step + 1)

    def _agree(self, batch: Batch) -> Consensus:
        facts = [float(self.around.stop.is_set), float(len(batch.quarantined))]
        numbers = torch.cat([count(batch), torch.tensor(facts, dtype=torch.float64)])
        samples, saliency, segmentation, stopping, bad = self.around.world.all_sum(numbers).tolist()
        return Consensus(Normaliser(samples, saliency, segmentation), stopping > 0, int(bad))

    def _count_quarantined(self, step: int, batch: Batch, consensus: Consensus) -> None:
        if step % self.steps_per_epoch == 0:  # a bad sample comes again in every epoch
            self.quarantined = 0
        if batch.quarantined:
            self.around.events.write("quarantine", keys=list(batch.quarantined))
        self.quarantined += consensus.quarantined
        if self.quarantined > self.bad_sample_budget:
            raise DataError(
                f"{self.start.stage}: {self.quarantined} samples of an epoch could not be read, "
                f"the budget data.bad_sample_budget is {self.bad_sample_budget}. The quarantine "
                "records in events/ name them; mend the shards or raise the budget."
            )

    @contextmanager
    def _within_memory(self, batch: Batch) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            at_once = min(self.config.micro_batch or len(batch.keys), len(batch.keys))
            height, width = batch.image.shape[2:]
            cure = "begin a new run with smaller crops."
            if self.config.precision == "fp32":
                cure = "begin a new run with train.precision bf16 or smaller crops."
            if at_once > 1:
                cure = (
                    f"give the same command with --set train.micro_batch={at_once // 2}, which "
                    f"changes nothing but speed and rounding, or {cure}"
                )
            raise ConfigError(
                f"{self.start.stage}: {at_once} crops of {width}x{height} pixels at once do not "
                f"fit into memory; {cure}"
            ) from error

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        rows = len(batch.keys)
        size = self.config.micro_batch or rows
        batch = batch.to(self.around.world.device)
        return [batch.part(start, min(start + size, rows)) for start in range(0, rows, size)]

    def _warm_up(self, batch: Batch, normaliser: Normaliser) -> None:
        self.engine.warm_up(self._micro_batches(batch)[0], normaliser)

    def _accumulate(self, batch: Batch, normaliser: Normaliser) -> list[Losses]:
        parts = self._micro_batches(batch)
        return [
            self.engine.accumulate(part, normaliser, is_last=part is parts[-1]) for part in parts
        ]

    def _update(self, step: int, batch: Batch, decay: float) -> float:
        try:
            return self.engine.update(decay)
        except Diverged as error:
            keys = [key for key in batch.keys if key]
            self.around.events.write("diverged", round=self.start.round, step=step, keys=keys)
            raise Diverged(
                f"{self.start.stage}, step {step}: {error} Lower the learning rate, or look at the "
                "images of this step: the records called diverged in events/ name them."
            ) from error

    def _save(self, step: int) -> None:
        if step == self._saved:  # nothing happened since the checkpoint
            return
        self._saved = step
        state = self.engine.state()
        if not self.around.world.is_main:
            return
        self.around.fence.check()
        position = Position(self.start.round, step)
        run = self.around.run
        saved = save_checkpoint(
            run, position, self.total_steps, self.quarantined, state, self.images_sha256
        )
        self.around.fence.check()  # what a newer start writes right now is not to be pruned
        keep = 1 if saved.is_final else self.config.keep_checkpoints
        prune_checkpoints(run, position, keep)


class Meter:
    """Writes losses and speed of a stage to the events every few steps."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._since = time.monotonic()
        self._samples = 0

    def log(
        self, step: int, batch: Batch, losses: list[Losses], decay: float, gradient_norm: float
    ) -> None:
        """Record a step when its turn has come.

        Raises:
            Diverged: a loss is not finite.
        """
        stage = self._stage
        if stage.config.log_keys:
            stage.around.events.write(
                "keys", round=stage.start.round, step=step, keys=[key for key in batch.keys if key]
            )
        self._samples += len(batch.keys)
        if step % stage.config.log_every_steps and step + 1 != stage.total_steps:
            return
        parts = self._global_parts(losses)
        total = sum(parts.values())
        if not math.isfinite(total):
            raise Diverged(
                f"{stage.start.stage}, step {step}: the loss is not finite ({parts}). Lower the "
                "learning rate; the same command goes on from the newest checkpoint."
            )
        now = time.monotonic()
        stage.around.events.write(
            "step",
            round=stage.start.round,
            step=step,
            total=stage.total_steps,
            loss=total,
            parts=parts,
            decay=decay,
            gradient_norm=gradient_norm,
            images_per_s=self._samples * stage.around.world.size / max(now - self._since, 1e-9),
        )
        self._since, self._samples = now, 0

    def _global_parts(self, losses: list[Losses]) -> dict[str, float]:
        names = list(losses[0].parts)
        sums = [sum(part.parts[name].double() for part in losses) for name in names]
        values = torch.stack([torch.as_tensor(value) for value in sums]).cpu()
        return dict(zip(names, self._stage.around.world.all_sum(values).tolist(), strict=True))
