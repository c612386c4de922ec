"""One self-contained HTML page about a run, made from what lies in its folder."""

from __future__ import annotations

import base64
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from auxdist.config import Config
from auxdist.configfile import dump_config, load_config
from auxdist.evaluate.confusion import Measurement
from auxdist.evaluate.tables import read_measurement
from auxdist.labels.manifest import finished_manifests
from auxdist.labels.statistics import Totals
from auxdist.observe.charts import Curve, curves_chart, miou_chart, shares_chart
from auxdist.observe.events import steps_by_round
from auxdist.records import CLASSIFIER_ROUND
from auxdist.runfolder import RunFolder, read_failure, write_text

_MAX_POINTS = 200
"""Points of a curve; neighbouring records are averaged down to so many."""
_CAM_ONLY = "CAM only"


@dataclass(frozen=True)
class Row:
    """What was measured of something by its pseudo labels and in validation; fractions."""

    name: str
    labels: float | None
    val: float | None
    coverage: float | None = None


def write_report(run: RunFolder, state: str | None = None) -> Path:
    """Write the report of a run, finished or not; its path comes back.

    Raises:
        ConfigError: there is no configuration in the folder, so it is no run.
        DataError: a measurement or a manifest is damaged.
    """
    write_text(run.report, render(run, state))
    return run.report


def render(run: RunFolder, state: str | None = None) -> str:
    """The page as HTML text; `state` is what it says of the run, else what the folder tells."""
    environment = Environment(
        loader=PackageLoader("auxdist.observe", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["percent"] = _percent
    config = load_config(run.config)
    rows = _rows(run, config)
    return environment.get_template("report.html").render(
        config=config,
        state=state or _state(run),
        written=time.strftime("%Y-%m-%d %H:%M"),
        failure=(read_failure(run) or {}).get("message", ""),
        headline=_headline(rows),
        rows=rows,
        settings=_settings(config),
        yaml=dump_config(config),
        examples=_examples(run),
        **_class_facts(run, config),
        **_charts(run, config, rows),
    )


def _charts(run: RunFolder, config: Config, rows: list[Row]) -> dict[str, Any]:
    stages = steps_by_round(run)
    rounds = [row for row in rows if row.name != _CAM_ONLY]
    cam = next((row.labels for row in rows if row.name == _CAM_ONLY), None)
    manifests = finished_manifests(run)
    names = [f"round {round}" for round in manifests]
    shares = [_shares(manifest.totals) for manifest in manifests.values()]
    return {
        "miou": Markup(miou_chart([r.labels for r in rounds], [r.val for r in rounds], cam)),
        "losses": Markup(_loss_chart(stages)) if stages else "",
        "rates": Markup(_rate_chart(stages, config)) if stages else "",
        "shares": Markup(shares_chart(names, shares)) if names else "",
        "quarantined": len({key for m in manifests.values() for key in m.quarantined}),
    }


def _rows(run: RunFolder, config: Config) -> list[Row]:
    """What was measured, CAM-only labels first; empty before the first measurement."""
    cam = read_measurement(run, "cam-round-00")
    rows = [Row(_CAM_ONLY, _miou(cam), None, cam.coverage)] if cam else []
    for round in range(config.last_round + 1):
        labels = read_measurement(run, f"labels-round-{config.labels_of(round):02d}")
        val = read_measurement(run, f"val-round-{round:02d}")
        if labels or val:
            coverage = labels.coverage if labels else None
            rows.append(Row(f"round {round}", _miou(labels), _miou(val), coverage))
    return rows


def _headline(rows: list[Row]) -> list[tuple[str, str]]:
    """First and last figures of labels and validation, as (value, text)."""
    found = []
    rows = [row for row in rows if row.name != _CAM_ONLY]  # nothing learned from these
    for values, text in (
        ([row.labels for row in rows], "pseudo-label mIoU"),
        ([row.val for row in rows], "validation mIoU"),
    ):
        known = [value for value in values if value is not None]
        if known:
            change = f", {_percent(known[0])} % at first" if len(known) > 1 else ""
            found.append((f"{_percent(known[-1])} %", text + change))
    return found


def _class_facts(run: RunFolder, config: Config) -> dict[str, Any]:
    """Rows of the class table, of the last measured round."""
    for round in reversed(range(config.train.rounds + 1)):
        val = read_measurement(run, f"val-round-{round:02d}")
        if val is None:
            continue
        file = json.loads(run.evaluation(f"val-round-{round:02d}").read_text())
        names = ["background", *file.get("classes", range(1, len(val.iou)))]
        labels = read_measurement(run, f"labels-round-{config.labels_of(round):02d}")
        of_labels = _ious(labels) if labels else [None] * len(names)
        found = [Row(str(n), a, b) for n, a, b in zip(names, of_labels, _ious(val), strict=True)]
        return {"classes": found, "classes_of": f"round {round}"}
    return {"classes": [], "classes_of": ""}


def _loss_chart(stages: dict[int, list[dict[str, Any]]]) -> str:
    groups = {
        "classifier": [round for round in stages if round == CLASSIFIER_ROUND],
        "rounds": [round for round in stages if round != CLASSIFIER_ROUND],
    }
    groups = {title: rounds for title, rounds in groups.items() if rounds}
    panels = [
        [
            _curve(f"round {round}", [(r["step"], r["loss"]) for r in stages[round]])
            for round in rounds
        ]
        for rounds in groups.values()
    ]
    return curves_chart([f"loss, {title}" for title in groups], panels, "loss")


def _rate_chart(stages: dict[int, list[dict[str, Any]]], config: Config) -> str:
    """Learning rates of the last stage of each kind; all rounds have the same."""
    titles, panels = [], []
    for title, rounds, optimiser in (
        ("classifier", [r for r in stages if r == CLASSIFIER_ROUND], config.classifier.optimiser),
        ("rounds", [r for r in stages if r != CLASSIFIER_ROUND], config.train.optimiser),
    ):
        if rounds:
            rate = optimiser.learning_rate
            points = [(r["step"], rate * r["decay"]) for r in stages[rounds[-1]]]
            titles.append(f"learning rate, {title}")
            panels.append([_curve("", points)])
    return curves_chart(titles, panels, "rate")


def _curve(name: str, points: list[tuple[int, float]]) -> Curve:
    """Means of groups of neighbouring points, at most _MAX_POINTS of them."""
    size = math.ceil(len(points) / _MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return Curve(
        name,
        [group[-1][0] + 1 for group in groups],
        [sum(value for _, value in group) / len(group) for group in groups],
    )


def _shares(totals: Totals) -> dict[str, float]:
    pixels = max(totals.pixels, 1)
    return {
        "object": sum(totals.classes) / pixels,
        "background": totals.background / pixels,
        "ignored": totals.ignore / pixels,
    }


def _settings(config: Config) -> list[tuple[str, str]]:
    train, optimiser = config.train, config.train.optimiser
    return [
        ("data", config.data.train),
        ("validation", config.data.val or "none"),
        ("weights to start from", config.model.weights or "none, random"),
        ("crop", f"{config.data.crop.size} pixels"),
        ("global batch", f"{train.global_batch} ({train.engine}, {train.precision})"),
        (
            "optimiser",
            f"SGD, learning rate {optimiser.learning_rate:g} (heads x{optimiser.head_factor:g}), "
            f"momentum {optimiser.momentum:g}, weight decay {optimiser.weight_decay:g}",
        ),
        (
            "thresholds",
            f"CAM {config.labels.cam_threshold:g}, saliency {config.labels.saliency_threshold:g}",
        ),
        ("seed", str(config.seed)),
    ]


def _examples(run: RunFolder) -> str:
    """The picture of examples as a data URL; empty before it is made."""
    if not run.examples.exists():
        return ""
    return f"data:image/png;base64,{base64.b64encode(run.examples.read_bytes()).decode()}"


def _state(run: RunFolder) -> str:
    if run.complete.exists():
        return "complete"
    return "failed" if run.failure.exists() else "not finished"


def _miou(measurement: Measurement | None) -> float | None:
    return _known(measurement.miou) if measurement else None


def _ious(measurement: Measurement) -> list[float | None]:
    return [_known(value) for value in measurement.iou.tolist()]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
