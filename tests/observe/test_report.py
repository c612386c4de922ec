"""The report shows what lies in the run folder, needs nothing else, and executes no data."""

import io
import re
from pathlib import Path

import numpy as np
import pytest

from auxdist.config import Config, DataConfig, ModelConfig, TrainConfig
from auxdist.configfile import dump_config, load_config
from auxdist.errors import ConfigError, DataError
from auxdist.evaluate.confusion import Measurement
from auxdist.jobs.status import status_of
from auxdist.labels.manifest import Manifest, Provenance, write_manifest
from auxdist.labels.statistics import Changes, Statistics, Totals
from auxdist.observe import report
from auxdist.observe.events import EventLog
from auxdist.observe.report import _stages, render, write_report
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


def test_report_shows_the_measurements(tmp_path: Path) -> None:
    page = write_report(finished_run(tmp_path)).read_text()
    table = re.findall(r"<tr><td>(round 1|CAM only)</td>(.*?)</tr>", page)
    values = {name: re.findall(r"<td>(.*?)</td>", cells) for name, cells in table}
    labels, val = measured(55), measured(60)
    assert values["round 1"][0] == f"{100 * labels.miou:.2f}"
    assert values["round 1"][2] == f"{100 * val.miou:.2f}"
    assert values["CAM only"][2] == "-"
    assert page.count("<svg") == 4
    assert "complete" in page
    assert "could not be read and are ignored: 1." in page


def test_curves_of_rounds_that_were_set_aside_are_not_drawn(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    assert list(_stages(run)) == [-1, 0, 1]
    with EventLog(run, 0, console=io.StringIO()) as log:
        log.write("rollback", round=1, folder="x")
    assert list(_stages(run)) == [-1, 0]


def test_report_is_self_contained_and_escapes_names(tmp_path: Path) -> None:
    page = render(finished_run(tmp_path))
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)


def test_labels_that_are_never_refreshed_stand_beside_every_network(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    write_text(run.config, run.config.read_text().replace("refresh: true", "refresh: false"))
    rows = report._rows(run, load_config(run.config))
    assert [row.labels for row in rows[1:]] == [rows[1].labels] * 2, "a row for each network"
    assert report._class_facts(run, load_config(run.config))["classes"][1].labels is not None


def test_the_headline_compares_labels_that_a_network_learned_from(tmp_path: Path) -> None:
    page = write_report(finished_run(tmp_path)).read_text()
    first, cam = (f"{100 * measured(right).miou:.2f} % at first" for right in (40, 20))
    assert first in page
    assert cam not in page


def test_damaged_files_are_named(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    (run.labels(1) / "manifest.json").write_text('{"statist')
    with pytest.raises(DataError, match=r"round-01/manifest\.json: is damaged"):
        render(run)
    run.evaluation("val-round-01").write_text("")
    with pytest.raises(DataError, match=r"val-round-01\.json: is damaged"):
        render(run)


def test_a_failure_whose_writer_was_killed_is_a_failure_all_the_same(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    run.failure.write_text("")
    assert "failure.json was cut short; the log says" in render(run)
    assert status_of(run).state == "failed"


def test_report_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    page = render(empty_run(tmp_path))
    assert "Nothing was measured yet" in page
    assert "not finished" in page


def test_report_of_a_failed_run_says_why(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    write_json(run.failure, {"message": "shard x: is damaged"})
    assert "shard x: is damaged" in render(run)


def test_pictures_of_examples_are_part_of_the_page(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    run.examples.write_bytes(b"png")
    assert '<img src="data:image/png;base64,cG5n" alt=' in render(run)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read"):
        write_report(RunFolder(tmp_path))
