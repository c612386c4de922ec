"""The report shows what lies in the run folder, needs nothing else, and executes no data."""

import io
import re
from pathlib import Path

import pytest
from finishedrun import empty_run, finished_run, measured

from auxdist.configfile import load_config
from auxdist.errors import ConfigError, DataError
from auxdist.jobs.status import status_of
from auxdist.observe import report
from auxdist.observe.events import EventLog, steps_by_round
from auxdist.observe.report import render, write_report
from auxdist.runfolder import RunFolder, write_json, write_text


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
    assert list(steps_by_round(run)) == [-1, 0, 1]
    with EventLog(run, 0, console=io.StringIO()) as log:
        log.write("rollback", round=1, folder="x")
    assert list(steps_by_round(run)) == [-1, 0]


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
