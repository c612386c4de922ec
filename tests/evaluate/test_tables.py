"""Text tables."""

from pathlib import Path

import numpy as np

from auxdist.config import Config, TrainConfig
from auxdist.evaluate.confusion import Measurement
from auxdist.evaluate.tables import class_table, rounds_table
from auxdist.runfolder import RunFolder, write_json


def measurement(right: int, wrong: int) -> Measurement:
    matrix = np.zeros((3, 4), dtype=np.int64)
    matrix[0, 0], matrix[1, 1], matrix[1, 0] = 50, right, wrong
    return Measurement(matrix, 7, 2)


def test_class_table_has_every_class_and_the_mean() -> None:
    lines = class_table(measurement(30, 10), ["cat", "dog"]).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["background", "83.33", "83.33", "100.00", "50"],
        ["cat", "75.00", "100.00", "75.00", "40"],
        ["dog", "-", "-", "-", "0"],
        ["mean", "79.17", "91.67", "87.50", "90"],
    ]


def test_rounds_table_begins_with_the_cams_alone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    figures = {
        "cam-round-00": (10, 30),
        "labels-round-00": (20, 20),
        "val-round-00": (25, 15),
        "labels-round-01": (30, 10),
    }
    for name, figure in figures.items():
        write_json(run.evaluation(name), measurement(*figure).as_json())
    lines = rounds_table(run, Config(train=TrainConfig(rounds=1))).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["CAM", "only", "43.75", "100.00", "-"],
        ["round", "0", "60.71", "100.00", "69.71"],
        ["round", "1", "79.17", "100.00", "-"],
    ]
