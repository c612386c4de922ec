"""Ablations: the same start for all variants, each with its own settings, in one table."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from smallrun import make_data, small_config

from auxdist.cli import main
from auxdist.configfile import dump_config, load_config
from auxdist.errors import ConfigError
from auxdist.evaluate.confusion import Measurement
from auxdist.jobs import ablate
from auxdist.jobs.ablate import (
    VARIANTS,
    Ablation,
    ablation_table,
    chosen_variants,
    run_ablation,
    without_repeats,
)
from auxdist.jobs.local import Outcome
from auxdist.labels.store import latest_round
from auxdist.runfolder import RunFolder, write_json
from auxdist.train.networks import final_checkpoint
from auxdist.validation import validate

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ablate")
    make_data(root)
    file = root / "small.yaml"
    file.write_text(dump_config(small_config(root)))
    return file


@pytest.fixture(scope="module")
def done(config_file: Path) -> Ablation:
    """Two variants that work and one that diverges, with one seed."""
    variants = chosen_variants(
        ["as-configured", "no-saliency"], [["wild", "train.optimiser.learning_rate=1e12"]]
    )
    ablation = Ablation(config_file, config_file.parent / "runs", variants=variants, seeds=(3,))
    outcome = run_ablation(ablation)
    assert (outcome.code, outcome.message.split(";")[0]) == (2, "Failed: wild with seed 3")
    return ablation


def run_of(ablation: Ablation, name: str) -> RunFolder:
    return RunFolder(ablation.root / f"{name}-seed3")


def test_variants_share_classifier_and_first_labels(done: Ablation) -> None:
    start = run_of(done, "start")
    manifest = (start.labels(0) / "manifest.json").read_bytes()
    assert not start.checkpoints("round-00").exists()
    for name in done.variants:
        run = run_of(done, name)
        assert (run.labels(0) / "manifest.json").read_bytes() == manifest
        assert not run.checkpoints("classifier").exists()
        weights = load_config(run.config).classifier.weights
        assert weights is not None
        assert Path(weights).is_relative_to(start.checkpoints("classifier"))
        assert load_config(run.config).seed == 3


def test_each_variant_has_its_own_settings_and_result(done: Ablation) -> None:
    assert not load_config(run_of(done, "no-saliency").config).model.branches.saliency
    runs = [run_of(done, name) for name in done.variants]
    assert [r.evaluation("val-round-00").exists() for r in runs] == [True, True, False]
    whole, without = (final_checkpoint(run, 0).weights().keys() for run in runs[:2])
    assert without < whole
    assert not any(name.startswith("sal_") for name in without)


def test_a_variant_that_fails_is_said_and_does_not_end_the_others(done: Ablation) -> None:
    *_, good, bad = ablation_table(done).splitlines()
    assert good.split()[0] == "no-saliency"
    assert good.endswith("1 of 1")
    assert bad.split()[:1] + bad.split()[-5:] == ["wild", "-", "0", "of", "1,", "Diverged"]


def test_a_second_call_starts_nothing_that_is_done(
    done: Ablation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(run: RunFolder, *_: object) -> Outcome:
        raise AssertionError(f"{run.root} was started again")

    monkeypatch.setattr(ablate, "start_locally", refuse)
    words = ["ablate", str(done.config_file), "--out", str(done.root), "--seeds", "3"]
    again = ["--add", "again", "model.branches.saliency=false", "model.affinity.predictions=own"]
    assert main([*words, "--variants", "as-configured", "no-saliency", *again]) == 0
    out = capsys.readouterr().out
    assert "again is what no-saliency is" in out
    assert "first labels" in out
    page = (done.root / "ablation.md").read_text()
    assert "- `no-saliency`: `model.branches.saliency=false`" in page
    assert "- `again`: is what `no-saliency` is" in page
    figures = json.loads((done.root / "ablation.json").read_text())
    assert figures["seeds"] == [3]
    assert figures["miou"]["no-saliency"][0].keys() >= {"labels 1", "network 0", "last network"}


def test_variants_that_differ_in_the_refresh_alone_share_the_first_round(done: Ablation) -> None:
    refresh_off = ("labels.refresh=false",)
    both = {"as-configured": (), "sharing": refresh_off}
    assert run_ablation(replace(done, variants={"by-itself": refresh_off})).code == 0
    assert run_ablation(replace(done, variants=both)).code == 0
    by_itself, sharing = run_of(done, "by-itself"), run_of(done, "sharing")
    assert "train round-00" in by_itself.events(0).read_text()
    assert "train round-00" not in sharing.events(0).read_text()
    sums = {
        final_checkpoint(run, 0).weights_sha256
        for run in (by_itself, sharing, run_of(done, "as-configured"))
    }
    assert len(sums) == 1
    measured = [run.evaluation("val-round-00").read_bytes() for run in (by_itself, sharing)]
    assert measured[0] == measured[1]


def test_a_first_round_that_is_not_finished_is_not_shared(
    done: Ablation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablate, "start_locally", lambda *_: Outcome(0))
    shutil.copytree(run_of(done, "no-saliency").root, done.root / "half-seed3")
    [whole] = run_of(done, "half").checkpoints("round-00").glob("step-0000012")
    shutil.rmtree(whole)
    settings = VARIANTS["no-saliency"]
    variants = {"half": settings, "other": (*settings, "labels.refresh=false")}
    assert run_ablation(replace(done, variants=variants)).code == 0
    assert run_of(done, "other").labels(0).exists()
    assert not run_of(done, "other").checkpoints("round-00").exists()


def test_first_labels_are_named_the_latest_before_they_are_whole(
    done: Ablation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ablate, "start_locally", lambda *_: Outcome(0))
    ablation = replace(done, variants={"cut": ()})
    with monkeypatch.context() as patch:
        patch.setattr(ablate, "_copy_folder", dies)
        with pytest.raises(KeyboardInterrupt):
            run_ablation(ablation)
    assert latest_round(run_of(done, "cut")) == 0
    assert run_ablation(ablation).code == 0
    assert (run_of(done, "cut").labels(0) / "manifest.json").exists()


def test_a_stop_ends_the_whole_ablation(done: Ablation, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def stopped(run: RunFolder, *_: object) -> Outcome:
        started.append(run.root.name)
        return Outcome(130, "Stopped")

    monkeypatch.setattr(ablate, "start_locally", stopped)
    variants = chosen_variants(["no-unary", "auxsegnet"])
    assert run_ablation(replace(done, variants=variants)).code == 130
    assert started == ["no-unary-seed3"]


@pytest.mark.parametrize("config", ["demo.yaml", "voc.yaml", "voc-mini.yaml", "coco-mini.yaml"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_named_variant_is_a_valid_configuration(config: str, name: str) -> None:
    base, variant = (load_config(CONFIGS / config, own) for own in ((), VARIANTS[name]))
    assert validate(variant) == validate(base) == []
    as_shipped = ("as-configured", "unary" if base.model.affinity.unary else "no-unary")
    assert (variant == base) == (name in as_shipped)


@pytest.mark.parametrize("text", ["labels.cam_threshold=0.3", "data.image_scale=0.5", "seed=4"])
def test_settings_that_change_the_first_labels_are_refused(config_file: Path, text: str) -> None:
    ablation = Ablation(config_file, config_file.parent / "x", variants={"mine": (text,)})
    with pytest.raises(ConfigError, match=f"variant mine: {text} changes the classifier or the"):
        run_ablation(ablation)
    assert not ablation.root.exists()


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"x": ("train.runds=1",)}, "variant x: --set train.runds: train.runds is not a key"),
        ({"x": ("model.affinity.unary=false",)}, "variant x: .*unary_pred is gated"),
        ({"start": ()}, "variant 'start': names a folder"),
        ({"a/b": ()}, "variant 'a/b': names a folder"),
    ],
)
def test_variants_that_cannot_run_are_refused_before_anything_does(
    config_file: Path, variant: dict[str, tuple[str, ...]], message: str
) -> None:
    ablation = Ablation(config_file, config_file.parent / "y", variants=variant)
    ablation, _ = without_repeats(ablation)
    with pytest.raises(ConfigError, match=message):
        run_ablation(ablation)
    assert not ablation.root.exists()


def test_an_unknown_variant_names_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"--variants no-uanry: .* no-whitening, no-unary"):
        chosen_variants(["no-uanry"])


def test_a_switch_that_is_turned_already_is_no_variant(config_file: Path) -> None:
    on, off = VARIANTS["unary"], VARIANTS["no-unary"]
    variants = {"as-configured": (), "on": on, "off": off, "again": off}
    for settings, kept in ((on, ["as-configured", "off"]), (off, ["as-configured", "on"])):
        ablation = Ablation(config_file, Path("x"), settings=settings, variants=variants)
        left, repeats = without_repeats(ablation)
        assert list(left.variants) == kept
        assert repeats.keys() == variants.keys() - set(kept)
    shipped, repeats = without_repeats(Ablation(CONFIGS / "voc.yaml", Path("x")))
    assert repeats == {"no-unary": "as-configured", "no-whitening": "auxsegnet"}
    assert len(shipped.variants) == len(VARIANTS) - 2


def test_the_table_has_mean_and_spread_over_seeds(tmp_path: Path, config_file: Path) -> None:
    ablation = Ablation(config_file, tmp_path, variants={"a": ()}, seeds=(0, 1))
    for run, shares in zip(ablation.runs("a"), ((1, 3), (2, 3)), strict=True):
        _pretend(run, shares)
    *_, row = ablation_table(ablation).splitlines()
    assert " ".join(row.split()) == "a 37.50 ± 17.68 75.00 ± 0.00 - - 2 of 2"


def _pretend(run: RunFolder, quarters: Sequence[int]) -> None:
    """Label rounds of one class, without background, of which so many quarters are right."""
    for round, right in enumerate(quarters):
        truth, found = np.ones(4, np.uint8), np.full(4, 255, np.uint8)
        found[:right] = 1
        measured = Measurement.of(truth[None], found[None], 1)
        write_json(run.evaluation(f"labels-round-{round:02d}"), measured.as_json())
    write_json(run.complete, {})


def test_a_run_that_is_to_have_more_rounds_by_now_is_not_shown_as_complete(done: Ablation) -> None:
    before = replace(done, variants={"no-saliency": VARIANTS["no-saliency"]})
    now = replace(before, settings=["train.rounds=2"])
    rows = [ablation_table(each).splitlines()[-1].split() for each in (before, now)]
    assert rows[0][-3:] == ["1", "of", "1"]
    assert rows[1] == ["no-saliency", "-", "-", "-", "-", "0", "of", "1"]


def test_a_copy_of_a_network_that_was_cut_is_made_again(
    done: Ablation, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = ablate._copy_folder

    def cut(source: Path, target: Path) -> None:
        if source.name.startswith("step-"):
            target.with_name(f".{target.name}.1a.tmp").mkdir(parents=True)
            raise KeyboardInterrupt
        copied(source, target)

    monkeypatch.setattr(ablate, "start_locally", lambda *_: Outcome(0))
    ablation = replace(done, variants={"as-configured": (), "halved": ("labels.refresh=false",)})
    halved = run_of(done, "halved")
    with monkeypatch.context() as patch:
        patch.setattr(ablate, "_copy_folder", cut)
        with pytest.raises(KeyboardInterrupt):
            run_ablation(ablation)
    assert not halved.evaluation("val-round-00").exists(), "it would be that of another network"
    assert run_ablation(ablation).code == 0
    assert final_checkpoint(halved, 0)
    assert halved.evaluation("val-round-00").exists()


def test_a_first_round_of_other_settings_is_not_shared(
    done: Ablation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablate, "start_locally", lambda *_: Outcome(0))
    other = run_of(done, "no-saliency")
    assert final_checkpoint(other, 0)
    variants = {"fresh": (), "no-saliency": VARIANTS["no-saliency"]}
    assert run_ablation(replace(done, variants=variants)).code == 0
    assert run_of(done, "fresh").labels(0).exists()
    assert not run_of(done, "fresh").checkpoints("round-00").exists()


def test_a_variant_with_other_settings_than_its_run_is_refused_before_anything_runs(
    done: Ablation,
) -> None:
    variants = {"new": (), "no-saliency": ("train.epochs=3",)}
    with pytest.raises(ConfigError, match=r"variant no-saliency: .*train\.epochs is 2 in this run"):
        run_ablation(replace(done, variants=variants))
    assert not run_of(done, "new").root.exists()
