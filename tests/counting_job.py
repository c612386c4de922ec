"""A Job whose work is to count, so that starts, stops and deaths can be tested without training.

plan.json in the run folder says how far, and what goes wrong on the way.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from auxdist.config import Config
from auxdist.errors import DataError, Stopped
from auxdist.jobs.job import Job, leave_after, main
from auxdist.runfolder import RunFolder, write_json
from auxdist.train.guard import Fence, StopFlag
from auxdist.world import World


class CountingJob(Job):
    """Counts to plan["steps"], one every plan["step_s"] seconds; goes on where it stopped."""

    def work(
        self, run: RunFolder, config: Config, world: World, stop: StopFlag, fence: Fence
    ) -> None:
        """Count; every rank notes who and where it is."""
        plan = json.loads((run.root / "plan.json").read_text())
        names = ("RANK", "LOCAL_RANK", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURMD_NODENAME")
        facts = {name: os.environ.get(name) for name in names} | {"pid": os.getpid()}
        write_json(run.root / f"rank-{world.rank}.json", facts)
        state = run.root / "state.json"
        first = json.loads(state.read_text())["step"] if state.exists() else 0
        with (run.root / "starts").open("a") as file:
            file.write(f"{world.rank} of {world.size} at {first}\n")
        for step in range(first, plan["steps"]):
            if world.any(stop.is_set):
                raise Stopped(f"saved at step {step}.")
            misbehave(run, plan, world, step)
            time.sleep(plan["step_s"])
            fence.check()
            if world.is_main:
                write_json(state, {"step": step + 1})
        misbehave(run, plan, world, plan["steps"])


def misbehave(run: RunFolder, plan: dict, world: World, step: int) -> None:
    """Do what the plan says of this rank and step; the number of steps stands for their end."""
    if plan.get("superseded") == [world.rank, step]:
        Fence.raise_new(run)
    if plan.get("fail") == [world.rank, step]:
        raise DataError("sample x: is damaged; build the shards anew.")
    if plan.get("break") == [world.rank, step]:
        raise RuntimeError("not foreseen")
    if plan.get("die") == [world.rank, step] and not (run.root / "died").exists():
        (run.root / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    leave_after(lambda: main(CountingJob(sys.argv[1])))
