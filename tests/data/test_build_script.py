"""The builders as a user meets them: exit codes, signals, killed processes, a full disk."""

import errno
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from build_script import command, content_of, environment, run_script

from auxdist.data.command import run_command
from auxdist.data.index import load_index

DEMO = ("--count", 120, "--samples-per-shard", 6, "--size", 64, "--processes", 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed build leaves."""
    out = tmp_path_factory.mktemp("whole") / "train"
    run_script("build_demo.py", out, *DEMO)
    return content_of(out)


def _start(out: Path) -> subprocess.Popen[str]:
    """A build that has finished one more shard at least and is at work on others."""
    before = len(list(out.glob("train-*.json")))
    process = subprocess.Popen(
        command("build_demo.py", out, *DEMO),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob("train-*.json"))) <= before:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def _members(session: int) -> dict[int, int]:
    """Parent by process id, of the living processes of a session."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found[int(entry.name)] = int(fields[1])
    return found


def _workers(session: int) -> list[int]:
    """The processes whose parent is itself a child of the first one."""
    members = _members(session)
    return [pid for pid, parent in members.items() if members.get(parent) == session]


def _finish(out: Path, whole: dict[str, bytes]) -> None:
    """The same command goes on, and leaves what an undisturbed build leaves."""
    assert not (out / "index.json").exists()
    assert "finished before" in run_script("build_demo.py", out, *DEMO).stdout
    assert content_of(out) == whole


def test_asked_to_stop_leaves_cleanly_and_goes_on(tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = tmp_path / "train"
    for number, send in ((signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)):
        process = _start(out)
        send(process.pid, number)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 130
        assert "the same command goes on" in errors
        assert "Traceback" not in errors
        assert not list(out.glob(".*.tmp"))
    _finish(out, whole)


def test_killed_processes_leave_nothing_half_done_and_the_build_goes_on(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "train"
    process = _start(out)
    os.kill(_workers(process.pid)[0], signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert "A worker process died" in errors
    assert "Traceback" not in errors
    process = _start(out)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while _members(process.pid):  # the workers follow their parent
        assert time.monotonic() < deadline
        time.sleep(0.05)
    _finish(out, whole)


def test_second_build_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "train"
    process = _start(out)
    try:
        done = run_script("build_demo.py", out, *DEMO, code=2)
        assert "another build is at work" in done.stderr
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_full_disk_is_named_and_the_build_goes_on(tmp_path: Path) -> None:
    options = (tmp_path / "train", "--count", 16, "--samples-per-shard", 8, "--size", 96,
               "--processes", 2)  # fmt: skip

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = subprocess.run(
        command("build_demo.py", *options),
        env=environment(),
        preexec_fn=limit_file_size,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written (File too large)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "train").glob("*.tar"))
    run_script("build_demo.py", *options)
    assert load_index(tmp_path / "train").num_samples == 16


def test_demo_split_is_named_after_its_folder_unless_told(tmp_path: Path) -> None:
    run_script("build_demo.py", tmp_path / "train", "--count", 2, "--size", 64, "--no-saliency")
    index = load_index(tmp_path / "train")
    assert (index.split, index.saliency) == ("train", "none")
    assert "sal.png" not in index.samples(0)[0].members
    run_script("build_demo.py", tmp_path / "x", "--count", 2, "--size", 64, "--split", "val")
    assert load_index(tmp_path / "x").samples(0)[0].key == "val-000000"


def test_bad_option_is_an_error_without_traceback(tmp_path: Path) -> None:
    for options in (["--count", 0], ["--processes", 0], ["--shard-mb", -1]):
        done = run_script("build_demo.py", tmp_path / "out", *options, code=2)
        assert "expected" in done.stderr


def test_a_path_that_may_not_be_looked_at_is_a_line_not_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/secret/photos")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: /secret/photos: Permission denied.\n"
