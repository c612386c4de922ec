"""Events of a run: one JSON record a line and rank; console and report are views of them."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, TextIO

from auxdist.records import Position
from auxdist.runfolder import RunFolder


class EventLog:
    """Appends the records of one rank; the main rank also prints them as short lines.

    A record is whole or, after a death in the middle of it, skipped by `read_events`.
    """

    def __init__(self, run: RunFolder, rank: int, console: TextIO | None = None) -> None:
        """Open the log of `rank`; `console` is where the main rank prints (standard output)."""
        path = run.events(rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if self._file.tell() and not _ends_a_line(run, rank):
            self._file.write(b"\n")
        self._rank = rank
        self._console = console

    def write(self, kind: str, **fields: Any) -> None:
        """Append one record; its time is added. Fields are plain JSON values."""
        record = {"kind": kind, "time": round(time.time(), 3), **fields}
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        if self._rank == 0 and (line := describe(record)):
            print(line, file=self._console or sys.stdout, flush=True)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_events(run: RunFolder, rank: int = 0) -> Iterator[dict[str, Any]]:
    """The records of one rank in the order of writing; torn lines are skipped."""
    path = run.events(rank)
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:  # its writer died in the middle of it
                continue
            if isinstance(record, dict) and "kind" in record:
                yield record


def steps_by_round(run: RunFolder) -> dict[int, list[dict[str, Any]]]:
    """Step records by round. A step that was done again counts once, one set aside not at all."""
    steps: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)
    for record in read_events(run):
        if record["kind"] == "rollback":
            steps = defaultdict(dict, {r: s for r, s in steps.items() if r < record["round"]})
        if record["kind"] == "step":
            steps[record["round"]][record["step"]] = record
    return {round: [steps[round][s] for s in sorted(steps[round])] for round in sorted(steps)}


def describe(record: dict[str, Any]) -> str:
    """A record as one short line for people; empty for records that are not for them."""
    kind = record["kind"]
    if kind == "keys":
        return ""
    if view := _VIEWS.get(kind):
        return view(record)
    facts = [f"{k} {_short(v)}" for k, v in record.items() if k not in ("kind", "time")]
    return f"{kind}: {', '.join(facts)}"


def _ends_a_line(run: RunFolder, rank: int) -> bool:
    with run.events(rank).open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _stage(record: dict[str, Any]) -> str:
    return Position(record["round"], 0).stage


def _step(record: dict[str, Any]) -> str:
    done = f"{record['step'] + 1}/{record['total']}"
    text = f"{_stage(record)}  step {done:>11}  loss {record['loss']:.4f}"
    if "images_per_s" in record:
        text += f"  {record['images_per_s']:.1f} images/s"
    return text


def _refresh(record: dict[str, Any]) -> str:
    images = record["images"]
    made = record.get("made", images)  # logs of older versions lack it
    text = f"labels of round {record['round']}  {images} images"
    if made < images:
        text += f", {made} of them now"
    if made:
        speed = made / max(record["seconds"], 1e-9)
        text += f" in {record['seconds']:.1f} s ({speed:.1f} images/s)"
    text += f", {100 * record['coverage']:.1f} % of the pixels labelled"
    if record.get("changed") is not None:
        text += f", {100 * record['changed']:.1f} % changed"
    return text


def _rejected(record: dict[str, Any]) -> str:
    return f"labels of round {record['round']}  not adopted: {'; '.join(record['reasons'])}"


def _task(record: dict[str, Any]) -> str:
    """Beginnings only: how a task ended is said by the records that it leaves."""
    is_news = record["what"] == "started" and not record["name"].startswith("measure")
    return f"\n{record['name']}" if is_news else ""


def _measure(record: dict[str, Any]) -> str:
    miou = record["miou"]  # None where the split shows no class
    return f"{record['name']}  mIoU " + ("unknown" if miou is None else f"{100 * miou:.2f} %")


def _quarantine(record: dict[str, Any]) -> str:
    keys = record.get("keys", [record.get("key", "?")])
    reason = f" ({record['reason']})" if record.get("reason") else ""
    return f"not readable, left out: {', '.join(keys)}{reason}"


def _rollback(record: dict[str, Any]) -> str:
    return (
        f"back to the labels of round {record['round']}; what came after is in {record['folder']}"
    )


_VIEWS = {
    "step": _step,
    "task": _task,
    "refresh": _refresh,
    "rejected": _rejected,
    "rollback": _rollback,
    "measure": _measure,
    "quarantine": _quarantine,
}


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
