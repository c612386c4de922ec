"""What `make ci` saw `make demo` do: refined labels beat the first ones, and rounds help."""

import pytest
from styleguide import ROOT

from auxdist.configfile import load_config
from auxdist.evaluate.tables import read_measurement
from auxdist.runfolder import RunFolder

RUN = RunFolder(ROOT / "runs" / "demo-ci")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not RUN.complete.exists(), reason="`make ci` runs the demo first"),
]


def miou(name: str) -> float:
    found = read_measurement(RUN, name)
    assert found is not None
    return found.miou


def test_labels_get_better_from_the_cams_to_the_last_round() -> None:
    last = load_config(RUN.config).train.rounds
    assert last >= 3
    assert miou("cam-round-00") < miou("labels-round-00") < miou(f"labels-round-{last:02d}")


def test_the_last_network_beats_the_first() -> None:
    last = load_config(RUN.config).train.rounds - 1
    assert miou(f"val-round-{last:02d}") > miou("val-round-00")


def test_the_report_and_the_picture_are_there() -> None:
    assert "<svg" in RUN.report.read_text()
    assert RUN.examples.stat().st_size > 10_000
