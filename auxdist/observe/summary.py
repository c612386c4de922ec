"""The measured results of a run, read from its evaluation files; no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from auxdist.runfolder import RunFolder

CAM_ONLY = "CAM only"
"""Name of the row of the labels that the CAMs alone would give."""


@dataclass(frozen=True)
class Row:
    """What was measured of one generation of pseudo labels, and of the network trained on them.

    Values are fractions; None where nothing was measured.
    """

    name: str
    labels: float | None
    coverage: float | None
    """Share of the pixels that the labels do not ignore."""
    val: float | None


def rows(run: RunFolder) -> list[Row]:
    """One row for each round in order, after that of the CAMs alone."""
    cam = read_evaluation(run, "cam-round-00")
    found = [Row(CAM_ONLY, cam["miou"], cam.get("coverage"), None)] if cam else []
    for round in range(_num_rounds(run)):
        labels = read_evaluation(run, f"labels-round-{round:02d}") or {}
        val = read_evaluation(run, f"val-round-{round:02d}") or {}
        found.append(
            Row(f"round {round}", labels.get("miou"), labels.get("coverage"), val.get("miou"))
        )
    return found


def table(run: RunFolder) -> str:
    """The rows as a table for a terminal; a line that says so where nothing was measured yet."""
    measured = rows(run)
    if not measured:
        return "Nothing was measured yet."
    head = ("", "pseudo-label mIoU %", "labelled pixels %", "validation mIoU %")
    cells = [(r.name, percent(r.labels), percent(r.coverage), percent(r.val)) for r in measured]
    align = ("left", "right", "right", "right")
    return tabulate(cells, headers=head, colalign=align, disable_numparse=True)


def percent(value: float | None) -> str:
    """A fraction in percent with two digits; empty for None."""
    return "" if value is None else f"{100 * value:.2f}"


def read_evaluation(run: RunFolder, name: str) -> dict[str, Any] | None:
    """A finished measurement, or None."""
    path = run.evaluation(name)
    return json.loads(path.read_text()) if path.exists() else None


def _num_rounds(run: RunFolder) -> int:
    folder = run.evaluation("any").parent
    names = [
        path.stem for kind in ("labels", "val") for path in folder.glob(f"{kind}-round-*.json")
    ]
    return max((int(name.rsplit("-", 1)[1]) + 1 for name in names), default=0)
