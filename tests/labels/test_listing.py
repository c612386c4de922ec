"""Tables of the rounds of labels."""

from pathlib import Path

import numpy as np
import pytest
from labelmaker import LABELS, PlainLabels, damage_image, make_round, tiny_net
from shardmaker import make_shards

from auxdist.data.index import Index
from auxdist.errors import Collapsed, DataError
from auxdist.evaluate.confusion import Measurement
from auxdist.labels.listing import Comparison, compare, labels_table
from auxdist.labels.manifest import MANIFEST_NAME
from auxdist.labels.refresh import RefinedLabels
from auxdist.labels.viewer import Viewer
from auxdist.runfolder import RunFolder, write_json


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_shards(tmp_path_factory.mktemp("images"), 6, 2, size=(33, 40))


def cells(table: str) -> dict[str, list[str]]:
    """Cells of each row by its name; cells are at least two spaces apart."""
    rows = [[cell for cell in line.split("  ") if cell] for line in table.splitlines()]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_every_round_is_listed_with_its_state_and_figures(index: Index, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first = make_round(run, index, PlainLabels())
    second = make_round(run, index, RefinedLabels(Viewer(tiny_net()), LABELS), round=1)
    with pytest.raises(Collapsed):
        make_round(run, index, PlainLabels(dark=256), round=2)
    run.labels(3).mkdir()
    (run.labels(3).parent / "round-00.bak").mkdir()  # somebody's copy is no round
    truth = np.array([[0, 1, 1, 2]], dtype=np.uint8)
    measured = Measurement.of(truth, np.array([[0, 1, 255, 0]], dtype=np.uint8), 3)
    write_json(run.evaluation("labels-round-01"), measured.as_json())
    found = cells(labels_table(run))
    assert found["labels"] == ["round 0", "round 1", "round 2", "round 3"]
    assert found["state"] == ["finished", "latest", "rejected", "not finished"]
    assert found["made by"] == ["classifier", "round-00", "round-01", "round-02"]
    assert found["labelled %"][:2] == [f"{100 * m.coverage:.2f}" for m in (first, second)]
    changed = 100 * second.statistics.changes.share
    assert found["changed since the round before %"][:2] == ["-", f"{changed:.2f}"]
    mixing = f"{second.statistics.mixture.mean:.4f}"
    assert found["share of the segmentation affinity"] == ["-", mixing, "-", "-"]
    assert found["mIoU %"] == ["-", "33.33", "-", "-"]
    assert found["precision %"][1] == "75.00"
    assert found["recall %"][1] == "50.00"


def test_comparison_equals_counting_pixels(index: Index, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    make_round(run, index, PlainLabels())
    make_round(run, index, PlainLabels(dark=85), round=1)
    found = compare(run, index, 0, 1)
    assert found.num_images == 6
    assert found.changes.pixels == found.before.pixels == 6 * 33 * 40
    rows = cells(found.table(index.classes))
    lost = found.changes.lost[0]
    assert lost == found.changes.gained[-1] == found.before.background - found.after.background > 0
    kept = found.after.background
    background = [found.before.background, kept, lost, 0]
    iou = f"{100 * kept / found.before.background:.2f}"
    assert rows["background"] == [*map(str, background), iou]
    assert rows["class0"][-1] == "100.00"
    assert rows["class1"] == ["0", "0", "0", "0", "-"]
    back = compare(run, index, 1, 0)
    assert (back.changes.lost, back.changes.gained) == (found.changes.gained, found.changes.lost)


def test_a_table_of_two_small_maps() -> None:
    before = np.array([[0, 0, 1, 1, 2, 255]], dtype=np.uint8)
    after = np.array([[0, 1, 1, 2, 2, 0]], dtype=np.uint8)
    rows = cells(Comparison.of(before, after, 2).table(("cat", "dog")))
    assert rows["background"] == ["2", "2", "1", "1", "33.33"]
    assert rows["cat"] == ["2", "2", "1", "1", "33.33"]
    assert rows["dog"] == ["1", "2", "0", "1", "50.00"]
    assert rows["ignore"] == ["1", "0", "1", "0", "0.00"]
    assert rows["all"] == ["6", "6", "3", "3", "-"]


def test_rejected_labels_can_be_compared_but_not_unfinished_ones(
    index: Index, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    make_round(run, index, PlainLabels())
    with pytest.raises(Collapsed):
        make_round(run, index, PlainLabels(dark=256), round=1)
    assert compare(run, index, 0, 1).after.background == 0
    (run.labels(0) / MANIFEST_NAME).unlink()
    with pytest.raises(DataError, match=r"round-00: has no manifest\.json"):
        compare(run, index, 0, 1)


def test_images_without_labels_and_other_images(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "images", 6, 2, size=(33, 40))
    run = RunFolder(tmp_path / "run")
    make_round(run, index, PlainLabels())
    damage_image(index, 0, 1)
    second = make_round(run, index, PlainLabels(), round=1)
    assert compare(run, index, 0, 1).num_images == 5
    assert second.statistics.changes.pixels == 5 * 33 * 40
    other = make_shards(tmp_path / "other", 6, 2, size=(33, 40), seed=1)
    with pytest.raises(DataError, match="labels of other images than those in"):
        compare(run, other, 0, 1)
