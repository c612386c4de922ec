"""Local processes: started together, stopped together, none left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from auxdist.jobs.local import Outcome, run_processes

ROOT = Path(__file__).resolve().parents[2]

CHILD = """
import os, signal, sys, time
rank, folder = int(os.environ["RANK"]), sys.argv[1]
asked = []
if "stubborn" not in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(f"{folder}/{rank}.pid.part", "w").write(str(os.getpid()))
os.rename(f"{folder}/{rank}.pid.part", f"{folder}/{rank}.pid")
"""
WAIT_FOR_STOP = """
while not asked:
    time.sleep(0.02)
sys.exit(75)
"""


def command(folder: Path, body: str, *extra: str) -> list[str]:
    return [sys.executable, "-c", CHILD + body, str(folder), *extra]


def run(folder: Path, body: str, *extra: str, procs: int = 2, grace_s: float = 5) -> Outcome:
    return run_processes(command(folder, body, *extra), procs, {}, grace_s=grace_s)


def until(condition: Callable[[], object], limit_s: float = 20) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """True for a process that runs; a zombie that its parent has not reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_rank_gets_its_place(tmp_path: Path) -> None:
    body = """
names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "EXTRA")
open(f"{folder}/{rank}", "w").write(" ".join(os.environ[name] for name in names))
open(f"{folder}/{rank}.port", "w").write(os.environ["MASTER_PORT"])
"""
    outcome = run_processes(command(tmp_path, body), 3, {"EXTRA": "x"})
    assert outcome == Outcome(0)
    for rank in range(3):
        assert (tmp_path / str(rank)).read_text() == f"3 {rank} 3 127.0.0.1 x"
    assert len({(tmp_path / f"{rank}.port").read_text() for rank in range(3)}) == 1


def test_a_killed_rank_ends_the_others_and_is_named(tmp_path: Path) -> None:
    outcome = run(tmp_path, "rank == 1 and os.kill(os.getpid(), signal.SIGKILL)" + WAIT_FOR_STOP)
    assert outcome.code == 128 + signal.SIGKILL
    assert outcome.message == (
        "Rank 1 was killed by SIGKILL; the same command goes on. The other processes were stopped."
    )


def test_a_failing_rank_gives_its_exit_code(tmp_path: Path) -> None:
    outcome = run(tmp_path, "rank == 0 and sys.exit(2)" + WAIT_FOR_STOP)
    assert outcome.code == 2
    assert outcome.message.startswith("Rank 0 ended with exit code 2.")


def test_a_rank_that_does_not_leave_is_killed_after_the_grace(tmp_path: Path) -> None:
    body = """
while rank == 0:
    time.sleep(0.02)
    if os.path.exists(f"{folder}/1.pid"):
        sys.exit(3)
time.sleep(600)
"""
    outcome = run(tmp_path, body, "stubborn", grace_s=0.5)
    assert outcome.code == 3
    assert not is_alive(int((tmp_path / "1.pid").read_text()))


def test_ranks_that_stop_by_themselves_are_no_failure(tmp_path: Path) -> None:
    outcome = run(tmp_path, "sys.exit(75)")
    assert outcome == Outcome(75, "Stopped; the same command goes on from here.")


def test_of_work_that_keeps_nothing_it_is_said(tmp_path: Path) -> None:
    stops, dies = command(tmp_path, "sys.exit(75)"), command(tmp_path, "os.kill(os.getpid(), 9)")
    outcome = run_processes(stops, 1, {}, resumes=False)
    assert outcome == Outcome(75, "Stopped; the same command begins anew.")
    outcome = run_processes(dies, 1, {}, resumes=False)
    assert outcome == Outcome(137, "Rank 0 was killed by SIGKILL; the same command begins anew.")


@pytest.fixture
def launcher(tmp_path: Path) -> subprocess.Popen[str]:
    """A launcher as a process of its own, with two ranks that wait for a stop."""
    return start_launcher(tmp_path, WAIT_FOR_STOP)


def start_launcher(folder: Path, body: str, *extra: str) -> subprocess.Popen[str]:
    text = (
        "import sys; from auxdist.jobs.local import run_processes\n"
        f"outcome = run_processes({command(folder, body, *extra)!r}, 2, {{}})\n"
        "print(outcome.message); sys.exit(outcome.code)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    until(lambda: len(list(folder.glob("*.pid"))) == 2)
    return process


def pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("*.pid")]


def test_ctrl_c_lets_all_save_and_leave(tmp_path: Path, launcher: subprocess.Popen[str]) -> None:
    launcher.send_signal(signal.SIGINT)
    out, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == 130
    assert out == "Stopped and saved; the same command goes on from here.\n"
    assert not any(map(is_alive, pids(tmp_path)))


def test_a_launcher_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does; children inherit it
    try:
        launcher = start_launcher(tmp_path, WAIT_FOR_STOP)
    finally:
        signal.signal(signal.SIGHUP, before)
    launcher.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.wait(timeout=0.5)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=20)
    assert launcher.returncode == 128 + signal.SIGTERM


def test_a_second_ctrl_c_kills(tmp_path: Path) -> None:
    launcher = start_launcher(tmp_path, "time.sleep(600)", "stubborn")
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    out, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == 130
    assert out == "Stopped; the same command goes on from the last saved state.\n"
    assert not any(map(is_alive, pids(tmp_path)))


def test_no_process_outlives_a_killed_launcher(
    tmp_path: Path, launcher: subprocess.Popen[str]
) -> None:
    launcher.kill()
    launcher.wait()
    until(lambda: not any(map(is_alive, pids(tmp_path))))


def test_a_stop_that_the_ranks_were_told_is_reported_as_a_stop(tmp_path: Path) -> None:
    launcher = start_launcher(tmp_path, WAIT_FOR_STOP)
    for pid in pids(tmp_path):
        os.kill(pid, signal.SIGTERM)
    launcher.communicate(timeout=20)
    assert launcher.returncode == 75
