"""The whole loop on real photographs of VOC or COCO, by the commands that a user would give.

    python benchmarks/photographs.py voc --root VOC --out build/voc-mini
    python benchmarks/photographs.py coco --root COCO --out build/coco-mini

ROOT has JPEGImages/, SegmentationClass/, labels.json, train.txt and val.txt; VOC also saliency/.
Builds the shards, runs configs/{voc,coco}-mini.yaml on two processes, evaluates, and with
`--results FILE.md` writes a page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from machine import machine, run

from auxdist.configfile import load_config
from auxdist.data.index import load_index
from auxdist.evaluate.tables import rounds_table
from auxdist.runfolder import RunFolder

SHARDS = ("--samples-per-shard", "20")
"""Processes share a refresh by shards, so a few hundred images need small ones."""


def main() -> None:
    """Parse the command line and run the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=("voc", "coco"))
    parser.add_argument("--root", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder for shards and the run")
    parser.add_argument("--limit", type=int, help="take only so many photographs of each list")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, help="write a page of results")
    wanted = parser.parse_args()
    root, out = wanted.root.resolve(), wanted.out.resolve()
    build = build_voc if wanted.dataset == "voc" else build_coco
    for split in ("train", "val"):
        build(root, out, split, keys(root, out, split, wanted.limit))
    config = f"configs/{wanted.dataset}-mini.yaml"
    changes = [f"data.train={out / 'train'}", f"data.val={out / 'val'}", *wanted.set]
    words = [word for change in changes for word in ("--set", change)]
    run("launch/local.py", "--procs", "2", config, "--run", out / "run", *words)
    run("-m", "auxdist.cli", "evaluate", out / "run", "--procs", "2")
    if wanted.results:
        wanted.results.write_text(page(wanted.dataset, wanted.set, RunFolder(out / "run")))


def page(dataset: str, changes: list[str], run: RunFolder) -> str:
    """The measurements of a run, whose config had those changes."""
    title, root = f"{dataset}-mini: the whole loop on real photographs", dataset.upper()
    command = f"python benchmarks/photographs.py {dataset} --root {root} --out build/{dataset}-mini"
    command += "".join(f" --set {change}" for change in changes)
    config = load_config(run.config)
    images = [len_of(folder) for folder in (config.data.train, config.data.val or "")]
    return (
        f"# {title}\n\n`{command}`\non {machine()}\n\n"
        f"{images[0]} photographs to learn from, {images[1]} to measure on; backbone "
        f"`{config.model.backbone}`, {config.classifier.epochs} epochs of the classifier, "
        f"{config.train.epochs} of each round, weights to start from: "
        f"{config.model.weights or 'none, random ones'}.\n\n"
        f"```\n{rounds_table(run, config)}\n```\n"
    )


def len_of(folder: str) -> int:
    """Images in a folder of shards."""
    return load_index(folder).num_samples


def build_voc(root: Path, out: Path, split: str, listed: Path) -> None:
    """Shards of VOC photographs; training learns from labels.json, the masks only measure."""
    saliency = ("--saliency", root / "saliency") if split == "train" else ("--no-saliency",)
    labels = ("--labels", root / "labels.json")
    run("shards/build_voc.py", root, out / split, "--list", listed, *labels, *saliency, *SHARDS)


def build_coco(root: Path, out: Path, split: str, listed: Path) -> None:
    """Shards of COCO photographs, through an instances file made from the masks."""
    instances = out / f"instances_{split}.json"
    run("tests/coco_instances.py", root, listed, instances)
    saliency = () if split == "train" else ("--no-saliency",)
    images = root / "JPEGImages"
    given = ("--instances", instances)
    run("shards/build_coco.py", images, out / split, *given, *saliency, *SHARDS)


def keys(root: Path, out: Path, split: str, limit: int | None) -> Path:
    """The list of a split, cut to `limit` keys."""
    listed = out / f"{split}.txt"
    out.mkdir(parents=True, exist_ok=True)
    listed.write_text("\n".join((root / f"{split}.txt").read_text().split()[:limit]) + "\n")
    return listed


if __name__ == "__main__":
    main()
