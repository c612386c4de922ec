"""The whole loop on real photographs, by the commands that a user gives, in a small size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shared_data import SHARED, needs_shared
from styleguide import ROOT

pytestmark = [pytest.mark.slow, needs_shared, pytest.mark.timeout(900)]
# so few steps teach nothing: whatever labels come are to be taken
QUICK = (
    "classifier.epochs=1",
    "train.rounds=1",
    "train.epochs=1",
    "labels.gate.enabled=false",
)


@pytest.mark.parametrize(("dataset", "classes"), [("voc", 20), ("coco", 80)])
def test_shards_labels_a_round_and_an_evaluation(
    dataset: str, classes: int, tmp_path: Path
) -> None:
    assert SHARED is not None
    script = str(ROOT / "benchmarks" / "photographs.py")
    root = str(SHARED / "data" / dataset)
    changes = [word for change in QUICK for word in ("--set", change)]
    call = [sys.executable, script, dataset, "--root", root, "--out", str(tmp_path)]
    done = subprocess.run(
        [*call, "--limit", "12", *changes],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for name in ("labels-round-00", "labels-round-01", "cam-round-00", "val-round-00"):
        found = json.loads((tmp_path / "run" / "evaluation" / f"{name}.json").read_text())
        assert found["num_images"] == 12
        assert len(found["iou"]) == classes + 1
    assert "round 0 on 12 images" in done.stdout
