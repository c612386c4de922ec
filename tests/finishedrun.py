"""The folder of a run that is done, with figures that nobody computed: for what only shows them."""

import io
from pathlib import Path

import numpy as np

from auxdist.config import Config, DataConfig, ModelConfig, TrainConfig
from auxdist.configfile import dump_config
from auxdist.evaluate.confusion import Measurement
from auxdist.labels.manifest import Manifest, Provenance, write_manifest
from auxdist.labels.statistics import Changes, Statistics, Totals
from auxdist.observe.events import EventLog
from auxdist.runfolder import RunFolder, write_json, write_text

CLASSES = ("<script>alert(1)</script>", "cat", "dog")


def empty_run(root: Path) -> RunFolder:
    run = RunFolder(root)
    config = Config(
        name="demo",
        data=DataConfig(train="/data/train", val="/data/val"),
        model=ModelConfig(num_classes=3, backbone="small"),
        train=TrainConfig(rounds=2),
    )
    write_text(run.config, dump_config(config))
    return run


def measured(right: int) -> Measurement:
    """Every class has `right` of 100 pixels right; the rest is taken for background."""
    matrix = np.zeros((4, 5), dtype=np.int64)
    matrix[0, 0] = 100
    for c in (1, 2, 3):
        matrix[c, c], matrix[c, 0], matrix[c, 4] = right, 90 - right, 10
    return Measurement(matrix, 5, 3)


def finished_run(root: Path) -> RunFolder:
    run = empty_run(root)
    results = {"cam-round-00": 20} | {f"labels-round-{r:02d}": 40 + 15 * r for r in range(3)}
    results |= {"val-round-00": 35, "val-round-01": 60}
    for name, right in results.items():
        record = {"name": name, "classes": CLASSES, **measured(right).as_json()}
        write_json(run.evaluation(name), record)
    with EventLog(run, 0, console=io.StringIO()) as log:
        for round in (-1, 0, 1):
            for step in [*range(0, 200, 10), *range(150, 400, 10)]:  # restarted on the way
                decay = (1 - step / 400) ** 0.9
                loss = (3 - 0.5 * round) * (0.3 + decay) + 0.1 * np.sin(step)
                log.write("step", round=round, step=step, total=400, loss=loss, decay=decay)
    for round in range(3):
        classes = [10, 5, 5 + 10 * round]
        totals = Totals(100, background=50, ignore=30 - 10 * round, classes=tuple(classes))
        statistics = Statistics(totals, Changes.none(3))
        manifest = Manifest(round, round - 1, Provenance("", ""), (), statistics, {"x": "?"})
        write_manifest(run.labels(round), manifest)
    write_json(run.complete, {})
    return run
