"""What TensorBoard reads is what the run's folder says."""

import sys
from pathlib import Path

import pytest
from finishedrun import finished_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from auxdist.errors import ConfigError
from auxdist.evaluate.tables import read_measurement
from auxdist.observe.events import steps_by_round
from auxdist.observe.tensorboard import write_tensorboard


def curve(folder: Path, name: str) -> dict[int, float]:
    events = EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_curves_are_the_events_and_measurements_of_the_run(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    for _ in range(2):  # written again, nothing comes twice
        folder = write_tensorboard(run)
    for stage, round in (("classifier", -1), ("round-01", 1)):
        expected = {record["step"]: record["loss"] for record in steps_by_round(run)[round]}
        assert curve(folder / stage, "training/loss") == pytest.approx(expected)
    for name, num_rounds in (("labels", 3), ("val", 2)):
        names = [f"{name}-round-{round:02d}" for round in range(num_rounds)]
        measured = [read_measurement(run, each) for each in names]
        expected = {round: found.miou for round, found in enumerate(measured) if found}
        assert len(expected) == num_rounds
        assert curve(folder / "rounds", f"mIoU/{name}") == pytest.approx(expected)
    assert curve(folder / "rounds", "labels/ignore") == pytest.approx({0: 0.3, 1: 0.2, 2: 0.1})


def test_without_the_package_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install -e \'\.\[tensorboard\]\'"):
        write_tensorboard(finished_run(tmp_path))
