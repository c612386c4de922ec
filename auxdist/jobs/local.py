"""Processes on this machine: started together, stopped together, never left behind."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from auxdist.jobs.job import EXIT_ERROR, EXIT_STOPPED

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.05


@dataclass(frozen=True)
class Outcome:
    """How a group of processes ended: its exit code, and one line about it where it is not 0."""

    code: int
    message: str = ""


@dataclass
class Group:
    """The processes of one launch, by rank."""

    processes: list[subprocess.Popen[bytes]]
    stopped_by: list[int] = field(default_factory=list)
    """Signals that the launcher was sent; the first asks the processes to stop, the next kills."""
    resumes: bool = True
    """Whether the same command, given again, goes on from what these processes have saved."""

    def ask_to_stop(self) -> None:
        """Let every process save and leave; only the ranks are told, not their data workers."""
        for process in self.processes:
            process.terminate()

    def again(self, where: str = "") -> str:
        """What the same command does next; it goes on `where`, if it resumes."""
        does = f"goes on{where}" if self.resumes else "begins anew"
        return f"the same command {does}."

    def kill(self) -> None:
        """End every process that still runs, and its data workers, at once."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    @property
    def is_over(self) -> bool:
        """True when no process runs any more."""
        return all(process.poll() is not None for process in self.processes)

    def lost(self) -> int | None:
        """A rank that ended in another way than finished or stopped: one that said why, if any."""
        codes = [process.poll() for process in self.processes]
        bad = [rank for rank, code in enumerate(codes) if code not in (None, 0, EXIT_STOPPED)]
        said = [rank for rank in bad if codes[rank] == EXIT_ERROR]
        killed = [rank for rank in bad if (codes[rank] or 0) < 0]
        return next(iter(said or killed or bad), None)  # others may only have lost their peer


def run_processes(
    command: Sequence[str],
    procs: int,
    environment: Mapping[str, str],
    grace_s: float = 15,
    save_s: float = 600,
    resumes: bool = True,
) -> Outcome:
    """Run `procs` copies of `command` as the ranks of one world; return when all have ended.

    `environment` is added to that of this process.

    A process that dies ends the others: they are asked to stop, and killed after `grace_s`.
    Ctrl-C (or TERM) asks all to save and leave within `save_s`; a second one kills them. Should
    the launcher itself be killed, the kernel kills the processes. The outcome says whether the
    same command `resumes` what they did.
    """
    with _signals_collected() as received:
        group = Group(_start(command, procs, environment), received, resumes)
        try:
            return _watch(group, grace_s, save_s)
        finally:
            group.kill()


def cpus_per_process(procs: int) -> int:
    """Each process's share of the CPUs that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) // procs)


def _start(
    command: Sequence[str], procs: int, environment: Mapping[str, str]
) -> list[subprocess.Popen[bytes]]:
    libc = ctypes.CDLL(None)
    launcher = os.getpid()

    def die_with_launcher() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # it died before prctl
            os._exit(1)

    port = _free_port()
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **environment, **_rank_environment(rank, procs, port)},
            # Ctrl-C reaches the launcher only; it then tells the ranks.
            start_new_session=True,
            preexec_fn=die_with_launcher,  # noqa: PLW1509 - this process has no other threads
        )
        for rank in range(procs)
    ]


def _rank_environment(rank: int, procs: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(procs),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(procs),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "SUBMITIT_EXECUTOR": "",  # a job that this launcher is part of is not the ranks' own
    }


def _watch(group: Group, grace_s: float, save_s: float) -> Outcome:
    while not group.is_over:
        if group.stopped_by:
            return _stop(group, save_s)
        if (rank := group.lost()) is not None:
            message = f"{_ending(group, rank)} The other processes were stopped."
            group.ask_to_stop()
            _wait(group, grace_s)
            return Outcome(_exit_code(group.processes[rank]), message)
        time.sleep(_POLL_S)
    return _verdict(group)


def _verdict(group: Group) -> Outcome:
    """The outcome of processes that have all ended by themselves."""
    if (rank := group.lost()) is not None:
        return Outcome(_exit_code(group.processes[rank]), _ending(group, rank))
    if any(process.returncode == EXIT_STOPPED for process in group.processes):
        return Outcome(EXIT_STOPPED, f"Stopped; {group.again(' from here')}")
    return Outcome(0)


def _stop(group: Group, save_s: float) -> Outcome:
    save = "save and " if group.resumes else ""
    print(f"Stopping: the processes {save}leave; once more to kill them.", file=sys.stderr)
    code = 128 + group.stopped_by[0]
    group.ask_to_stop()
    _wait(group, save_s)
    if group.is_over and group.lost() is None:
        saved = " and saved" if group.resumes else ""
        return Outcome(code, f"Stopped{saved}; {group.again(' from here')}")
    group.kill()
    return Outcome(code, f"Stopped; {group.again(' from the last saved state')}")


def _wait(group: Group, limit_s: float) -> None:
    """Until all have ended, `limit_s` has passed, or a further signal came."""
    known = len(group.stopped_by)
    end = time.monotonic() + limit_s
    while not group.is_over and time.monotonic() < end and len(group.stopped_by) == known:
        time.sleep(_POLL_S)


def _ending(group: Group, rank: int) -> str:
    code = group.processes[rank].returncode
    if code < 0:
        name = signal.Signals(-code).name
        return f"Rank {rank} was killed by {name}; {group.again()}"
    return f"Rank {rank} ended with exit code {code}."


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    return process.returncode if process.returncode > 0 else 128 - process.returncode


@contextmanager
def _signals_collected() -> Iterator[list[int]]:
    """Within the block Ctrl-C and TERM are only noted in the list; HUP stays ignored by nohup."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
