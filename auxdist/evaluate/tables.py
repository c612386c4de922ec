"""Measurements as text tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from tabulate import tabulate

from auxdist.evaluate.confusion import Measurement
from auxdist.runfolder import RunFolder

NOTHING = "-"


def class_table(measurement: Measurement, classes: Sequence[str]) -> str:
    """IoU of background and each of the `classes`, and their mean, in per cent."""
    names = ["background", *classes]
    pixels = measurement.matrix.sum(axis=1).tolist()
    rows = [
        [name, _percent(iou), count]
        for name, iou, count in zip(names, measurement.iou.tolist(), pixels, strict=True)
    ]
    rows.append(["mean", _percent(measurement.miou), sum(pixels)])
    return tabulate(
        rows, ["class", "IoU %", "true pixels"], disable_numparse=True, colalign=_align(3)
    )


def rounds_table(run: RunFolder, num_rounds: int) -> str:
    """Quality of the pseudo labels and of the network that learnt from them, round by round.

    The first row is what the CAMs alone would give. What was not measured is a dash.
    """
    rows = [_row(run, "CAM only", "cam-round-00", None)]
    for round in range(num_rounds + 1):
        val = f"val-round-{round:02d}"
        rows.append(_row(run, f"round {round}", f"labels-round-{round:02d}", val))
    header = ["labels", "label mIoU %", "labelled %", "validation mIoU %"]
    return tabulate(rows, header, disable_numparse=True, colalign=_align(4))


def read_measurement(run: RunFolder, name: str) -> Measurement | None:
    """A finished measurement of a run; None where there is none."""
    path = run.evaluation(name)
    return Measurement.from_json(json.loads(path.read_text())) if path.exists() else None


def _row(run: RunFolder, title: str, labels: str, val: str | None) -> list[str]:
    made = read_measurement(run, labels)
    learnt = read_measurement(run, val) if val else None
    return [
        title,
        _percent(made.miou) if made else NOTHING,
        _percent(made.coverage) if made else NOTHING,
        _percent(learnt.miou) if learnt else NOTHING,
    ]


def _percent(share: float) -> str:
    return NOTHING if math.isnan(share) else f"{100 * share:.2f}"


def _align(columns: int) -> list[str]:
    return ["left"] + ["right"] * (columns - 1)
