"""The table of a run is what its evaluation files say, CAM-only labels first."""

from pathlib import Path

from auxdist.observe.summary import rows, table
from auxdist.runfolder import RunFolder, write_json

EXPECTED = """\
            pseudo-label mIoU %    labelled pixels %    validation mIoU %
--------  ---------------------  -------------------  -------------------
CAM only                  30.12               100.00
round 0                   41.00                71.50                38.00
round 1                   45.25                80.00"""


def measured_run(root: Path) -> RunFolder:
    run = RunFolder(root)
    for name, miou, coverage in (
        ("cam-round-00", 0.3012, 1.0),
        ("labels-round-00", 0.41, 0.715),
        ("labels-round-01", 0.4525, 0.8),
    ):
        write_json(run.evaluation(name), {"name": name, "miou": miou, "coverage": coverage})
    write_json(run.evaluation("val-round-00"), {"name": "val-round-00", "miou": 0.38})
    return run


def test_table_of_rounds(tmp_path: Path) -> None:
    shown = table(measured_run(tmp_path))
    assert "\n".join(line.rstrip() for line in shown.splitlines()) == EXPECTED


def test_nothing_measured_yet(tmp_path: Path) -> None:
    assert rows(RunFolder(tmp_path)) == []
    assert table(RunFolder(tmp_path)) == "Nothing was measured yet."


def test_without_ground_truth_of_training_images_only_validation_is_shown(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_json(run.evaluation("val-round-00"), {"name": "val-round-00", "miou": 0.5})
    [row] = rows(run)
    assert (row.labels, row.val) == (None, 0.5)
