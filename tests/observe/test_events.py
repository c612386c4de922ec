"""Events survive deaths in the middle of a line, and read well."""

import io
from pathlib import Path

import pytest

from auxdist.observe.events import EventLog, describe, read_events
from auxdist.runfolder import RunFolder


def write_some(run: RunFolder, steps: range) -> None:
    with EventLog(run, 0, console=io.StringIO()) as log:
        for step in steps:
            log.write("step", round=0, step=step, total=9, loss=1.0 / (step + 1))


def test_records_come_back_in_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_some(run, range(3))
    write_some(run, range(3, 5))
    records = list(read_events(run))
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    assert all(record["time"] > 0 for record in records)


def test_a_torn_last_line_is_skipped_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_some(run, range(3))
    path = run.events(0)
    path.write_bytes(path.read_bytes()[:-9])
    assert [record["step"] for record in read_events(run)] == [0, 1]
    write_some(run, range(2, 4))
    assert [record["step"] for record in read_events(run)] == [0, 1, 2, 3]


def test_a_run_without_events_has_none(tmp_path: Path) -> None:
    assert list(read_events(RunFolder(tmp_path))) == []


def test_only_the_main_rank_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        with EventLog(RunFolder(tmp_path), rank) as log:
            log.write("measure", name="val-round-00", miou=0.25)
    assert capsys.readouterr().out == "val-round-00  mIoU 25.00 %\n"
    assert len(list(read_events(RunFolder(tmp_path), 1))) == 1


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            {"kind": "step", "round": -1, "step": 9, "total": 40, "loss": 0.5, "images_per_s": 7},
            "classifier  step       10/40  loss 0.5000  7.0 images/s",
        ),
        (
            {"kind": "task", "name": "train round-01", "what": "started"},
            "\ntrain round-01",
        ),
        (
            {"kind": "refresh", "round": 0, "seconds": 2.0, "images": 40}  # by an older version
            | {"coverage": 0.75, "changed": None},
            "labels of round 0  40 images in 2.0 s (20.0 images/s), 75.0 % of the pixels labelled",
        ),
        (
            {"kind": "refresh", "round": 1, "seconds": 2.0, "images": 40, "made": 40}
            | {"coverage": 0.75, "changed": 0.125},
            "labels of round 1  40 images in 2.0 s (20.0 images/s), 75.0 % of the pixels labelled, "
            "12.5 % changed",
        ),
        (
            {"kind": "refresh", "round": 1, "seconds": 2.0, "images": 40, "made": 10}
            | {"coverage": 0.75, "changed": None},
            "labels of round 1  40 images, 10 of them now in 2.0 s (5.0 images/s), "
            "75.0 % of the pixels labelled",
        ),
        (
            {"kind": "refresh", "round": 1, "seconds": 0.1, "images": 40, "made": 0}
            | {"coverage": 0.75, "changed": None},
            "labels of round 1  40 images, 0 of them now, 75.0 % of the pixels labelled",
        ),
        ({"kind": "measure", "name": "val", "miou": 0.5}, "val  mIoU 50.00 %"),
        ({"kind": "measure", "name": "val", "miou": None}, "val  mIoU unknown"),
        (
            {"kind": "rollback", "round": 1, "folder": "run/set-aside/2020"},
            "back to the labels of round 1; what came after is in run/set-aside/2020",
        ),
        (
            {"kind": "rejected", "round": 1, "reasons": ["a", "b"], "keys": []},
            "labels of round 1  not adopted: a; b",
        ),
        (
            {"kind": "quarantine", "keys": ["a", "b"]},
            "not readable, left out: a, b",
        ),
        ({"kind": "keys", "round": 0, "step": 0, "keys": ["a"]}, ""),
        ({"kind": "stopped", "time": 1, "message": "saved"}, "stopped: message saved"),
    ],
)
def test_lines_for_people(record: dict, line: str) -> None:
    assert describe(record) == line
