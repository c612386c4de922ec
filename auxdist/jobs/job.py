"""The callable that every process of a run executes, whoever launched it.

It carries one string, the run folder. Local processes are `python -m auxdist.jobs.job RUN`.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from auxdist.config import Config
from auxdist.configfile import load_config
from auxdist.errors import (
    PASSING,
    AuxdistError,
    DiskFull,
    LaunchError,
    NodeFault,
    PeerFailed,
    Stopped,
)
from auxdist.jobs.slurm import Allocation, current_allocation, wait_to_be_killed
from auxdist.runfolder import RunFolder, write_json
from auxdist.train.guard import Fence, StopFlag

if TYPE_CHECKING:
    from auxdist.world import World

EXIT_ERROR = 2
"""Exit code of a process that met an error a user can mend."""
EXIT_STOPPED = 75
"""Exit code of a process that was asked to stop and saved (EX_TEMPFAIL: try again later)."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a file system or a quota that is used up."""


@dataclass(frozen=True)
class Job:
    """One process of a run. Lives in an importable module, so that it is pickled by name."""

    root: str

    def __call__(self) -> None:
        """Do this process's share of everything in the run that is not done yet.

        Raises:
            Stopped: the run was asked to stop and saved its state.
            AuxdistError: the run cannot go on; failure.json says why.
        """
        run = RunFolder(Path(self.root))
        stop = StopFlag().install()  # replaces submitit's handlers, which save on rank 0 only
        try:
            self._run(run, stop)
        except (Stopped, PeerFailed):
            raise
        except AuxdistError as error:
            _tell(run, error)
            raise
        except OSError as error:
            if error.errno not in FULL:
                raise
            full = DiskFull(
                f"{error.filename or run.root}: cannot be written ({error.strerror}); what is "
                "finished is kept. Free space, then give the same command again."
            )
            _tell(run, full)
            raise full from error

    def work(
        self, run: RunFolder, config: Config, world: World, stop: StopFlag, fence: Fence
    ) -> None:
        """The run itself, on all ranks."""
        from auxdist.train.rounds import run_all

        run_all(run, config, world, stop, fence)

    def _run(self, run: RunFolder, stop: StopFlag) -> None:
        from auxdist.world import joined  # imports torch, which a launcher does not need

        config = load_config(run.config)
        allocation = current_allocation()
        if allocation:
            # However submitit, which called us and has a result to write, ends after an error.
            atexit.register(leave_process, 1)
            allocation.export_ranks()
        use_cpus(config)
        device = wanted_device(config, is_allocated=allocation is not None)
        with joined(device, config.compute.timeout_s) as world:
            fence = raise_fence(run, world)
            require_own_gpu(world, may_be_bound=allocation is not None)
            try:
                with _errors_of_the_newest_start(fence):
                    self.work(run, config, world, stop, fence)
                if world.is_main:
                    fence.check()
                    _finish(run, config)
            except Stopped as stopped:
                if allocation:
                    _leave_allocation(allocation, fence, world, stopped)
                raise
            world.barrier()
        if allocation:
            atexit.register(leave_process, 0)  # of two the later one is called first


@contextmanager
def _errors_of_the_newest_start(fence: Fence) -> Iterator[None]:
    """What a superseded start runs into is not the run's failure.

    Raises:
        Stopped: in place of the error, where the run was started again meanwhile.
    """
    try:
        yield
    except (Stopped, PeerFailed):
        raise
    except AuxdistError as error:
        if fence.is_newest:
            raise
        raise Stopped(
            f"{fence.run.root}: start {fence.incarnation} of the run met an error, but a newer one "
            f"has begun meanwhile: {error}"
        ) from error


def wanted_device(config: Config, is_allocated: bool) -> str:
    """compute.device; but where SLURM gave GPUs (`is_allocated`), auto is cuda.

    So a node whose driver is broken says that, and does not train on its CPU for days, or wait for
    the ranks of other nodes in another kind of process group.
    """
    device = config.compute.device
    return "cuda" if device == "auto" and is_allocated and config.launch.gpus_per_node else device


def require_own_gpu(world: World, may_be_bound: bool) -> None:
    """Return if each process of this machine has a GPU of its own, which NCCL wants.

    Raises:
        NodeFault: they have not. A cluster may bind one GPU to each process, which then sees no
            other.
    """
    import torch

    if not world.device.startswith("cuda"):
        return
    gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if gpus < here and not (may_be_bound and gpus == 1):
        raise NodeFault(
            f"{here} processes on this machine, but torch sees {gpus} GPUs; start at most one "
            "process for each GPU."
        )


def raise_fence(run: RunFolder, world: World) -> Fence:
    """Begin a new incarnation of the run; every rank gets its fence.

    When this returns on any rank, every earlier start of the run is fenced off.
    """
    incarnation = 0
    if world.is_main:
        run.failure.unlink(missing_ok=True)
        incarnation = Fence.raise_new(run).incarnation
    return Fence(run, world.from_main(incarnation))


def record_failure(run: RunFolder, error: AuxdistError) -> bool:
    """Note why the run stopped for good. True on the first process to fail: only it is heard."""
    record = {
        "error": type(error).__name__,
        "message": str(error),
        "rank": int(os.environ.get("RANK", "0")),
        "time": time.time(),
    }
    try:
        with run.failure.open("x") as file:
            json.dump(record, file, indent=1)
    except FileExistsError:
        return False
    except OSError:  # a full disk; the message must be heard all the same
        run.failure.unlink(missing_ok=True)
    return True


def _tell(run: RunFolder, error: AuxdistError) -> None:
    if _is_tried_again(run, error) or record_failure(run, error):
        print(error, file=sys.stderr, flush=True)


def _is_tried_again(run: RunFolder, error: AuxdistError) -> bool:
    """Whether the batch script shall queue the job again after an error, and still will."""
    allocation = current_allocation()
    if allocation is None or not may_pass(error):
        return False
    restarts = run.launch / f"{allocation.job_id}.restarts"
    count = restarts.stat().st_size if restarts.exists() else 0
    return count < load_config(run.config).launch.max_restarts


def may_pass(error: BaseException | None) -> bool:
    """Whether another start, perhaps on other nodes, may not meet an error or its cause."""
    if error is None:
        return False
    passing = isinstance(error, OSError) and error.errno in PASSING
    return passing or isinstance(error, NodeFault) or may_pass(error.__cause__)


def num_threads(config: Config) -> int:
    """CPU threads of this process: as configured, or its share of the processor."""
    if config.compute.threads_per_rank:
        return config.compute.threads_per_rank
    if current_allocation() and "SLURM_CPUS_PER_TASK" in os.environ:
        return int(os.environ["SLURM_CPUS_PER_TASK"])
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // processes)


def main(job: Job) -> int:
    """Run a job as a local process; the exit code comes back."""
    try:
        job()
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(stopped, flush=True)
        return EXIT_STOPPED
    except AuxdistError:  # the first process to fail has said it
        return EXIT_ERROR
    return 0


def use_cpus(config: Config) -> None:
    """Give this process its share of the CPUs, and let it keep the memory that it frees."""
    import cv2
    import torch

    torch.set_num_threads(num_threads(config))
    cv2.setNumThreads(num_threads(config))
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Have the C library (glibc) keep freed memory for the next allocation.

    By default it hands each large array back to the system at once, and a training step on a CPU
    spends a fifth of its time in page faults. Costs about a fifth more memory.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not so with other C libraries
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # which means never


def _leave_allocation(allocation: Allocation, fence: Fence, world: World, stopped: Stopped) -> None:
    """After a stop under SLURM: have the job queued again, unless it is not wanted any more."""
    if not fence.is_newest:
        # Tells the batch script not to queue this job again.
        mark = fence.run.launch / f"{allocation.job_id}.{allocation.restart}.superseded"
        with suppress(FileExistsError):  # another rank was first, and says it
            mark.touch(exist_ok=False)
            print(stopped, file=sys.stderr, flush=True)
        leave_process(EXIT_STOPPED)  # the others may not know yet, and leaving could wait for them
    try:
        if world.is_main and allocation.requeue():
            print(f"{stopped} Job {allocation.job_id} is queued again.", flush=True)
    except LaunchError as error:  # then the batch script queues it, as after a lost process
        print(error, file=sys.stderr, flush=True)
        leave_process(EXIT_STOPPED)  # the others sleep, so leaving the group could wait for them
    wait_to_be_killed()


def _finish(run: RunFolder, config: Config) -> None:
    from auxdist.observe.report import write_report

    write_report(run, state="complete")
    write_json(run.complete, {"name": config.name, "time": time.time()})


def leave_process(code: int) -> None:
    """End this process at once; whatever counts is on disk.

    A C++ thread of the process group that wants the interpreter while it shuts down aborts it, and
    that would hide the exit code; and NCCL may wait for the other ranks, after an error of this one
    until its time-out. So there is no shutting down.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_after(work: Callable[[], int]) -> None:
    """`leave_process` with the exit code of `work`, or 1 after an error, which is shown."""
    code = 1
    try:
        code = work()
    except Exception:
        traceback.print_exc()
    leave_process(code)


if __name__ == "__main__":
    leave_after(lambda: main(Job(sys.argv[1])))
