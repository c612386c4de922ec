"""The training stream: plan + reader + augment, in worker processes.

An item of the data set is this rank's whole batch of one step, so neither the number of workers nor
a restart changes what comes out, and to resume is to start at another step.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.util import Finalize
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from auxdist.config import DataConfig
from auxdist.data.augment import Crop, augment, draw_batch_scale, draw_sample
from auxdist.data.index import Index, Sample
from auxdist.data.keys import noise_key
from auxdist.data.plan import Plan, Rows
from auxdist.data.reader import check_size, read_image
from auxdist.errors import DataError, NodeFault
from auxdist.records import IGNORE, Batch

_BATCHES_AHEAD = 3
_ORDERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals to the job, which its reader processes do not act upon."""
_DEATHS = ("exited unexpectedly", "is killed by signal")
"""How torch words the death of a reader process."""

_LOG = logging.getLogger(__name__)


class LabelSource(Protocol):
    """Pseudo labels by sample."""

    def read(self, shard: int, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) uint8 segmentation and (H, W) uint8 saliency map of a sample.

        Raises:
            DataError: they are missing or damaged.
        """
        ...


def batches(
    index: Index,
    plan: Plan,
    data: DataConfig,
    labels: LabelSource | None,
    *,
    rank: int = 0,
    size: int = 1,
    first_step: int = 0,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """This rank's batches of steps first_step .. plan.total_steps - 1.

    A sample that cannot be read becomes a row of weight 0 and its key is in `quarantined`. Without
    `labels` the dense labels are 255 everywhere. Closing the iterator ends its workers.
    `pin_memory` is for a process that trains on a GPU.

    Raises:
        DataError: a table of samples cannot be read, or a reader process died.
        NodeFault: a file system does not answer.
    """
    loader: DataLoader[Any] = DataLoader(
        _Steps(index, plan, data, labels, rank, size),
        batch_size=None,
        sampler=range(first_step, plan.total_steps),
        num_workers=data.workers,
        prefetch_factor=_BATCHES_AHEAD if data.workers else None,
        multiprocessing_context=_context(pin_memory) if data.workers else None,
        worker_init_fn=_prepare_worker,
        pin_memory=pin_memory,
    )
    others = set(multiprocessing.active_children())
    iterator = _start(loader)
    workers = set(multiprocessing.active_children()) - others
    # For a process that ends without closing this iterator: it would wait for workers that do not
    # listen to its SIGTERM (see _prepare_worker).
    guard = Finalize(None, _kill, args=(workers,), exitpriority=0)
    try:
        while (item := _next(iterator)) is not None:
            if isinstance(item, _Failure):
                raise item.kind(item.text)
            yield item
    finally:
        del iterator  # ends the workers
        guard.cancel()


def _context(on_gpu: bool) -> BaseContext:
    """How workers are started: NCCL and drivers of fast networks do not survive a fork."""
    if not on_gpu:
        return multiprocessing.get_context("fork")
    resource_tracker.ensure_running()  # else the server does, and unblocks what `_start` blocks
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is then imported once, not by each worker
    return context


@dataclass(frozen=True)
class _Failure:
    """An error on its way from a worker; torch would wrap the text of an exception in its own."""

    kind: type[DataError | NodeFault]
    text: str


@dataclass(frozen=True)
class _Steps(Dataset[Any]):
    """Maps a step to this rank's Batch."""

    index: Index
    plan: Plan
    data: DataConfig
    labels: LabelSource | None
    rank: int
    size: int

    def __getitem__(self, step: int) -> Batch | _Failure:
        try:
            return self._batch(self.plan.rows(step).of_rank(self.rank, self.size))
        except (DataError, NodeFault) as error:
            return _Failure(type(error), str(error))

    def _batch(self, rows: Rows) -> Batch:
        plan, crop = self.plan, self.data.crop
        scale = draw_batch_scale(plan.seed, plan.round, rows.epoch, rows.step, crop)
        board = _Board(len(rows.shard), crop.size, len(self.index.classes))
        for row, shard in enumerate(rows.shard.tolist()):
            if shard < 0:
                continue
            sample = self._sample(shard, int(rows.sample[row]))
            try:
                content = self._crop(shard, sample, rows.epoch, scale)
            except DataError as error:
                _LOG.warning("left out a training sample: %s", error)
                board.quarantine(row, sample.key)
            else:
                noise = noise_key(plan.seed, plan.round, rows.epoch, sample.key)
                board.put(row, sample, content, noise)
        return board.batch()

    def _sample(self, shard: int, number: int) -> Sample:
        samples = self.index.samples(shard)
        if self.data.skip_unlabelled:
            samples = tuple(sample for sample in samples if sample.classes)
        return samples[number]

    def _crop(self, shard: int, sample: Sample, epoch: int, batch_scale: float) -> Crop:
        image = read_image(self.index, shard, sample)
        labels = self.labels.read(shard, sample.key) if self.labels else None
        for values in labels or ():
            check_size(values, image.shape[:2], f"labels of {sample.key}")
        plan, crop = self.plan, self.data.crop
        draw = draw_sample(
            plan.seed, plan.round, epoch, sample.key, crop=crop, batch_scale=batch_scale
        )
        draw = replace(draw, scale=draw.scale * self.data.image_scale)
        return augment(image, labels, draw, crop)


class _Board:
    """A batch being filled; rows that nobody fills keep weight 0, zero extent and label 255."""

    def __init__(self, rows: int, side: int, num_classes: int) -> None:
        self._arrays: dict[str, np.ndarray] = {
            "image": np.zeros((rows, 3, side, side), np.uint8),
            "extent": np.zeros((rows, 2), np.int64),
            "classes": np.zeros((rows, num_classes), np.float32),
            "segmentation": np.full((rows, side, side), IGNORE, np.uint8),
            "saliency": np.full((rows, side, side), IGNORE, np.uint8),
            "weight": np.zeros(rows, np.float32),
            "noise": np.zeros(rows, np.int64),
        }
        self._keys = [""] * rows
        self._quarantined: list[str] = []

    def put(self, row: int, sample: Sample, content: Crop, noise: int) -> None:
        """Fill a row."""
        for name in ("image", "extent", "segmentation", "saliency"):
            self._arrays[name][row] = getattr(content, name)
        self._arrays["classes"][row, list(sample.classes)] = 1
        self._arrays["weight"][row] = 1
        self._arrays["noise"][row] = noise
        self._keys[row] = sample.key

    def quarantine(self, row: int, key: str) -> None:
        """Leave a row empty because its sample cannot be read."""
        self._keys[row] = key
        self._quarantined.append(key)

    def batch(self) -> Batch:
        """What was put, as tensors."""
        tensors = {name: torch.from_numpy(array) for name, array in self._arrays.items()}
        return Batch(**tensors, keys=tuple(self._keys), quarantined=tuple(self._quarantined))


def _prepare_worker(worker: int) -> None:
    """Workers take no orders: SIGINT or SIGTERM to the job reaches them too, but only the training
    process decides when to stop. They leave when it closes the stream or dies.
    """
    for name in _ORDERS:
        signal.signal(name, signal.SIG_IGN)
    cv2.setNumThreads(0)
    training = multiprocessing.parent_process()
    if training and training.pid != os.getppid():  # torch would only watch the server between
        threading.Thread(target=_leave_with, args=(training,), daemon=True).start()


def _leave_with(process: Any) -> None:
    process.join()
    os._exit(1)


def _kill(workers: set[Any]) -> None:
    for worker in workers:
        worker.kill()


def _start(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the workers, without torch's SIGCHLD handler.

    That handler raises wherever the training process happens to be, such as amid a collective; a
    dead worker is noticed by `_next` all the same. Workers inherit that orders are blocked, so that
    none ends a worker before it ignores them.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD)
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, _ORDERS)
    try:
        iterator = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
    if in_main:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return iterator


def _next(iterator: Iterator[Any]) -> Any:
    """The next item, None at the end."""
    try:
        return next(iterator, None)
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _DEATHS):
            raise
        raise DataError(
            f"a reader process died ({error}); the usual cause is too little memory or shared "
            "memory (/dev/shm). Lower data.workers, or give the job more memory."
        ) from error
