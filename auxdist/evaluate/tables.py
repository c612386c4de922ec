"""Measurements as text tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from auxdist.config import Config
from auxdist.errors import DataError
from auxdist.evaluate.confusion import Measurement, mean_known
from auxdist.runfolder import RunFolder

NOTHING = "-"


def class_table(measurement: Measurement, classes: Sequence[str]) -> str:
    """IoU, precision and recall of background and each of the `classes`, and their means."""
    measures = (measurement.iou, measurement.precision, measurement.recall)
    pixels = measurement.matrix.sum(axis=1).tolist()
    columns = [[*measure.tolist(), mean_known(measure)] for measure in measures]
    rows = zip(
        ["background", *classes, "mean"],
        *([percent(value) for value in column] for column in columns),
        [*pixels, sum(pixels)],
        strict=True,
    )
    return text_table(["class", "IoU %", "precision %", "recall %", "true pixels"], rows)


def rounds_table(run: RunFolder, config: Config) -> str:
    """Quality of the pseudo labels and of the network that learnt from them, round by round.

    The first row is what the CAMs alone would give. What was not measured is a dash.
    """
    rows = [_row(run, "CAM only", "cam-round-00", None)]
    for round in range(config.last_round + 1):
        labels, val = f"labels-round-{config.labels_of(round):02d}", f"val-round-{round:02d}"
        rows.append(_row(run, f"round {round}", labels, val))
    header = ["labels", "label mIoU %", "labelled %", "validation mIoU %"]
    return text_table(header, rows)


def read_measurement(run: RunFolder, name: str) -> Measurement | None:
    """A finished measurement of a run; None where there is none.

    Raises:
        DataError: its file is damaged.
    """
    path = run.evaluation(name)
    if not path.exists():
        return None
    try:
        return Measurement.from_json(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: is damaged ({error!r}); delete it, and {run.complete.name} if there is one: "
            "the command that started the run then measures again."
        ) from error


def _row(run: RunFolder, title: str, labels: str, val: str | None) -> list[str]:
    made = read_measurement(run, labels)
    learnt = read_measurement(run, val) if val else None
    return [
        title,
        percent(made.miou) if made else NOTHING,
        percent(made.coverage) if made else NOTHING,
        percent(learnt.miou) if learnt else NOTHING,
    ]


def percent(share: float) -> str:
    """In per cent with two digits; a dash for NaN."""
    return NOTHING if math.isnan(share) else f"{100 * share:.2f}"


def text_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Names on the left, figures as they are on the right."""
    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate([list(row) for row in rows], header, disable_numparse=True, colalign=align)
