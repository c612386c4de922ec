"""`auxdist VERB`: light to start, clean in its errors, right in its numbers."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from shardmaker import make_shards

from auxdist.cli import main
from auxdist.config import (
    AffinityConfig,
    ClassifierConfig,
    ComputeConfig,
    Config,
    DataConfig,
    LaunchConfig,
    ModelConfig,
    TrainConfig,
)
from auxdist.configfile import dump_config
from auxdist.data.index import write_index
from auxdist.errors import DataError
from auxdist.jobs.job import record_failure
from auxdist.observe.events import EventLog
from auxdist.runfolder import RunFolder, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]


def config_of(folder: Path) -> Config:
    model = ModelConfig(
        num_classes=3,
        backbone="small",
        small_width=8,
        branch_channels=8,
        affinity=AffinityConfig(unary=True, whiten=True, unary_pred="gated"),
    )
    return Config(
        name="tiny",
        data=DataConfig(train=str(folder / "shards"), val=str(folder / "shards"), workers=0),
        model=model,
        classifier=ClassifierConfig(global_batch=4),
        train=TrainConfig(rounds=2),
        compute=ComputeConfig(device="cpu", threads_per_rank=1),
        launch=LaunchConfig(nodes=2),
    )


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    make_shards(tmp_path / "shards", 6, 2)
    run = RunFolder(tmp_path / "run")
    write_text(run.config, dump_config(config_of(tmp_path)))
    return run


@pytest.fixture
def trained(run: RunFolder, tmp_path: Path) -> RunFolder:
    """A run whose round 0 is finished, with random weights."""
    import torch

    from auxdist.model.builder import build
    from auxdist.records import Position
    from auxdist.train.checkpoint import save_checkpoint
    from auxdist.train.engine import State

    torch.manual_seed(1)
    weights = build(config_of(tmp_path).model).state_dict()
    save_checkpoint(run, Position(0, 1), 1, 0, State(dict(weights), {}))
    return run


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    verbs = "check status report tensorboard evaluate predict import-weights labels ablate"
    for verb in verbs.split():
        assert re.search(rf"^    {verb}\s+\w", out, re.MULTILINE)


def test_check_of_a_good_configuration(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(run.config), "--procs", "2", "--run", str(tmp_path / "new")]) == 0
    assert "good for 2 processes" in capsys.readouterr().out


def test_check_shows_all_problems(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--set",
        "model.num_classes=4",
        "--set",
        "train.rounds=-1",
        "--run",
        str(tmp_path / "n"),
    ]
    assert main(["check", str(run.config), *words]) == 2
    error = capsys.readouterr().err
    assert "--set train.rounds: train.rounds is -1" in error
    assert "--set model.num_classes: model.num_classes is 4" in error


def test_errors_are_clean_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("status", "report", "evaluate"):
        assert main([verb, str(tmp_path)]) == 2
        assert "is not a run folder" in capsys.readouterr().err


def test_status_of_a_run(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run.root)]) == 0
    assert "not running: the command that started tiny goes on" in capsys.readouterr().out
    with EventLog(run, 0) as log:
        log.write("step", round=1, step=4, total=10, loss=0.25)
    record_failure(run, DataError("shard x: is damaged; build it anew."))
    main(["status", str(run.root)])
    out = capsys.readouterr().out
    assert "failed: shard x: is damaged; build it anew. (rank 0)" in out
    assert re.search(r"last   round-01  step +5/10  loss 0.2500  \(\d+ s ago\)", out)
    write_json(run.complete, {})
    main(["status", str(run.root)])
    assert "state  complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("PENDING", "queued: job 41 is PENDING"),
        ("COMPLETING", "running: job 41 is COMPLETING"),
        ("STAGE_OUT", "queued: job 41 is STAGE_OUT"),
        ("TIMEOUT", "not running: job 41 is TIMEOUT, see RUN/launch/41_0_log.err; the command"),
    ],
)
def test_status_of_a_job(
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: str,
    said: str,
) -> None:
    write_text(run.jobs, '{"job_id": "41", "time": 0}\n')
    monkeypatch.setattr("auxdist.jobs.status.job_state", lambda job: state)
    assert main(["status", str(run.root)]) == 0
    assert said.replace("RUN", str(run.root)) in capsys.readouterr().out


def test_status_sees_a_launcher_at_work(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    run.launch.mkdir()
    with run.lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        main(["status", str(run.root)])
    assert "running: on this machine" in capsys.readouterr().out


def test_report_is_written(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.root)]) == 0
    assert capsys.readouterr().out.strip() == str(run.report)
    assert run.report.read_text().startswith("<!doctype html>")


def test_evaluation_is_the_same_on_one_and_two_ranks(
    trained: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained.root)]) == 0
    alone = capfd.readouterr().out
    assert alone.startswith("round 0 on 6 images of ")
    assert "background" in alone
    assert "class2" in alone
    assert main(["evaluate", str(trained.root), "--procs", "2", "--round", "0"]) == 0
    assert capfd.readouterr().out == alone


def test_post_processed_evaluation_is_the_same_on_two_ranks_and_written_as_json(
    trained: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--post-process", "--set", "evaluate.scales=[1.0, 0.5]", "--json"]
    assert main(["evaluate", str(trained.root), *words, str(tmp_path / "one.json")]) == 0
    assert "\nscales 1, 0.5; CRF\n" in capfd.readouterr().out
    words += [str(tmp_path / "two.json"), "--procs", "2"]
    assert main(["evaluate", str(trained.root), *words]) == 0
    one = json.loads((tmp_path / "one.json").read_text())
    assert one == json.loads((tmp_path / "two.json").read_text())
    assert one["num_images"] == 6
    assert one["inference"] == {
        "scales": [1.0, 0.5],
        "crf": True,
        "window": 0,
        "image_scale": 1.0,
        "precision": "fp32",
    }


def test_a_file_of_weights_is_measured_and_used_like_a_run(
    trained: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Published weights can be measured before anything is trained."""
    weights = trained.checkpoint("round-00", 1) / "weights.safetensors"
    words = ["--weights", str(weights), "--config", str(trained.config)]
    results = tmp_path / "run.json", tmp_path / "file.json"
    assert main(["evaluate", str(trained.root), "--json", str(results[0])]) == 0
    assert main(["evaluate", *words, "--json", str(results[1]), "--procs", "2"]) == 0
    assert f"{weights}, affinity unary True, whiten True, unary_pr" in capfd.readouterr().out
    of_run, of_file = (json.loads(path.read_text()) for path in results)
    assert (of_run.pop("round"), of_file.pop("weights")) == (0, str(weights))
    assert of_file.pop("affinity")["unary_pred"] == "gated"
    assert of_run == of_file
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "bird.png"), image)
    outs = tmp_path / "a", tmp_path / "b"
    for source, out in zip((["--run", str(trained.root)], words), outs, strict=True):
        assert main(["predict", str(tmp_path / "bird.png"), *source, "--out", str(out)]) == 0
    assert len({(out / "bird.png").read_bytes() for out in outs}) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "--weights", "W", "--config", "C"], "Give either a run folder"),
        (["--weights", "W"], "Give either a run folder"),
        (["--weights", "no.pth", "--config", "C"], "no.pth: no such weight file"),
        (["--weights", "PART", "--config", "C"], "tensors are missing, first "),
        (["--weights", "W", "--config", "C", "--set", "model.affinity.features=false"], "none of"),
        (["--weights", "W", "--config", "C", "--set", "model.small_width=16"], "of the same back"),
        (["--weights", "W", "--config", "C", "--set", "evaluate.window=3"], "is 3, but must be 0"),
    ],
)
def test_weights_that_cannot_be_measured(
    trained: RunFolder, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    weights = trained.checkpoint("round-00", 1) / "weights.safetensors"
    part = trained.root / "part.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if "att" not in k}, part)
    files = {"RUN": trained.root, "W": weights, "C": trained.config, "PART": part}
    assert main(["evaluate", *(str(files.get(word, word)) for word in words)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.rounds=1", "--set train.rounds=1: a finished network is what it is; only keys of"),
        ("evaluate.window=3", "--set evaluate.window: evaluate.window is 3, but must be 0"),
    ],
)
def test_evaluation_with_settings_that_cannot_be(
    trained: RunFolder, setting: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained.root), "--set", setting]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("procs", ["1", "2"])
@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"num_classes": 5}, "has 5 classes, but the network 3"),
        ({"ground_truth": False}, "has no ground truth (gt.png) to measure against"),
    ],
)
def test_evaluation_of_a_split_that_does_not_fit_is_refused_once(
    trained: RunFolder,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    split: dict[str, Any],
    said: str,
    procs: str,
) -> None:
    make_shards(tmp_path / "other", 2, 1, **split)
    words = ["evaluate", str(trained.root), "--split-folder", str(tmp_path / "other")]
    assert main([*words, "--procs", procs]) == 2
    assert capfd.readouterr().err.count(said) == 1


def test_evaluation_of_a_split_with_classes_in_another_order_is_refused(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many, so the figures would look right and be of other classes than named."""
    index = make_shards(tmp_path / "other", 2, 1)
    write_index(replace(index, classes=("class1", "class0", "class2")))
    assert main(["evaluate", str(trained.root), "--split-folder", str(index.root)]) == 2
    said = "its classes are class1, class0, class2, but the network learned class0, class1, class2"
    assert said in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_a_line_not_a_traceback(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["evaluate", str(trained.root), "--json", str(tmp_path / "file" / "x.json")]) == 2
    assert re.fullmatch(r".*/file: (Not a directory|File exists)\.\n", capsys.readouterr().err)


def test_evaluation_before_any_round_is_finished(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run.root)]) == 2
    assert "no round is finished yet" in capsys.readouterr().err


def test_evaluation_without_any_split(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run.config.read_text().replace(f"val: {tmp_path / 'shards'}", "val: null")
    write_text(run.config, text)
    assert main(["evaluate", str(run.root)]) == 2
    assert f"{run.config}: data.val is null" in capsys.readouterr().err


def test_labels_are_listed_compared_and_rolled_back(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from labelmaker import PlainLabels, make_round

    from auxdist.data.index import load_index

    index = load_index(tmp_path / "shards")
    for round, dark in ((0, 70), (1, 80)):
        make_round(run, index, PlainLabels(dark=dark), round=round)
    words = str(run.root)
    assert main(["labels", "list", words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "labels"
    assert lines[2].split() == ["state", "finished", "latest"]
    assert main(["labels", "diff", words, "0", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("labels of rounds 0 and 1 of 6 images: ")
    assert re.search(r"^class2 +0 +0 +0 +0 +-$", out, re.MULTILINE)
    assert main(["labels", "rollback", words, "0"]) == 0
    out = capsys.readouterr().out
    assert f"back to the labels of round 0; what came after is in {run.set_aside}" in out
    assert main(["labels", "rollback", words, "0"]) == 0
    assert "nothing came after the labels of round 0" in capsys.readouterr().out
    assert main(["labels", "rollback", words, "1"]) == 2
    assert "round-01: has no manifest.json" in capsys.readouterr().err


def test_prediction_writes_labels_and_overlay(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "bird.jpg"), image)
    words = [str(tmp_path / "bird.jpg"), "--run", str(trained.root), "--out", str(tmp_path / "out")]
    words += ["--post-process", "--set", "evaluate.window=64"]
    assert main(["predict", *words]) == 0
    for name in ("bird.png", "bird.overlay.jpg"):
        picture = cv2.imread(str(tmp_path / "out" / name))
        assert picture is not None
        assert picture.shape == (50, 70, 3)
    assert "bird.png" in capsys.readouterr().out


def test_prediction_needs_no_shards(trained: RunFolder, tmp_path: Path) -> None:
    """A run folder may be taken to where its images never were."""
    (tmp_path / "shards").rename(tmp_path / "elsewhere")
    cv2.imwrite(str(tmp_path / "x.jpg"), np.zeros((40, 40, 3), np.uint8))
    words = ["--run", str(trained.root), "--out", str(tmp_path / "out")]
    assert main(["predict", str(tmp_path / "x.jpg"), *words]) == 0
    with Image.open(tmp_path / "out" / "x.png") as labels:
        palette = labels.getpalette()
    assert palette is not None
    assert palette[3:6] == [128, 0, 0]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (["none.jpg"], "none.jpg: cannot be read"),
        (["a/x.jpg", "b/x.jpg"], "b/x.jpg: its result would overwrite that of a/x.jpg"),
    ],
)
def test_prediction_of_bad_images(
    trained: RunFolder, images: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", *images, "--run", str(trained.root), "--out", "out"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("names", [["x.png"], ["x.jpg", "x.overlay.jpg"]])
def test_prediction_never_overwrites_an_image(
    trained: RunFolder, tmp_path: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8, 3), np.uint8))
    name, images = names[-1], [str(tmp_path / name) for name in names]
    before = (tmp_path / name).read_bytes()
    assert main(["predict", *images, "--run", str(trained.root), "--out", str(tmp_path)]) == 2
    assert f"{name}: the result of" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == before
