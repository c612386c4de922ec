"""The method on a few hundred VOC photographs: rounds, both methods, each switch on and off.

    python benchmarks/voc_mini.py VOC --out build/voc-mini --results benchmarks/results

VOC is VOCdevkit/VOC2012 with the maps of U2-Net as saliency/KEY.png, or the few photographs of it
that voc-mini-{train,val}.txt name, with labels.json for Annotations/. Learns from train alone, by
the labels and the saliency maps; the masks measure. Each seed runs on one core, all seeds at once.
What is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from machine import CODE, machine, start

from auxdist.configfile import load_config
from auxdist.data.index import load_index
from auxdist.evaluate.confusion import Measurement
from auxdist.evaluate.tables import read_measurement, text_table
from auxdist.jobs.ablate import VARIANTS
from auxdist.runfolder import RunFolder, read_failure

CONFIG = "configs/voc-mini.yaml"
WHOLE = VARIANTS["unary"]
"""Settings of everything here: AuxSegNet+ with all its parts, from which switches take one away."""
NO_REFRESH = "first-labels"
ADDED = {f"no-unary-{NO_REFRESH}": (*VARIANTS["no-unary"], *VARIANTS[NO_REFRESH])}
"""Settings of what runs beside the named variants."""
LOOPS = {
    "no-unary": "auxsegnet+",
    f"no-unary-{NO_REFRESH}": "auxsegnet+, no refresh",
    "as-configured": "auxsegnet+ with unary",
    NO_REFRESH: "auxsegnet+ with unary, no refresh",
    "auxsegnet": "auxsegnet",
}
"""Variants that run all rounds, and their names on the page."""
PAIRS = {"no-unary": f"no-unary-{NO_REFRESH}", "as-configured": NO_REFRESH}
"""The same without a refresh."""
SWITCHES = [name for name in VARIANTS if name not in ("first-labels", "unary")]
"""Variants that run one round, at half the resolution: each costs minutes."""
TITLES = {"as-configured": "all parts", "no-unary": "no-unary, as shipped"}
"""Names of switches on the page, where they say more than those of the variants."""
SHORT = (
    "data.image_scale=0.5",
    "data.crop.size=160",
    "labels.refresh_scales=[1.0]",
    "labels.refresh_flip=false",
    "train.rounds=1",
    "train.epochs=5",
)
"""Settings of the switches."""


def main() -> None:
    """Parse the command line, run what is missing, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, metavar="VOC", help="folder of photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder for shards and runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], metavar="N", help="(0 1)")
    parser.add_argument(
        "--only",
        choices=("loops", "page"),
        help="loops: leave out the switches; page: run nothing, write what is measured so far",
    )
    parser.add_argument("--results", type=Path, help="folder for voc-mini.md and its picture")
    wanted = parser.parse_args()
    root, out = wanted.root.resolve(), wanted.out.resolve()
    results = wanted.results and wanted.results.resolve()
    if wanted.only != "page":
        run_loops(root, out, wanted.seeds)
    if wanted.only is None:
        at_once([ablation(out / "switches", seed, SWITCHES, *SHORT) for seed in wanted.seeds])
    if results:
        (results / "voc-mini.md").write_text(page(out, wanted.seeds))
        picture = ["--out", results / "voc-mini.png"]
        val = ["--split-folder", out / "val"]
        at_once([["benchmarks/panels.py", run_of(out, "as-configured", 0).root, *val, *picture]])


def run_loops(root: Path, out: Path, seeds: Sequence[int]) -> None:
    """Shards, all rounds of each method, and their networks with several scales and the CRF."""
    for split in ("train", "val"):
        build(root, out, split)
    at_once([ablation(out / "runs", seed, list(LOOPS)) for seed in seeds])
    for round in reversed(range(num_rounds())):
        for name in LOOPS:
            if round == 0 and name in PAIRS.values():
                continue  # the same network as with a refresh
            missing = [seed for seed in seeds if not post_file(out, name, seed, round).exists()]
            at_once([post_process(out, name, seed, round) for seed in missing])


def build(root: Path, out: Path, split: str) -> None:
    """Shards of a split; saliency of val is only looked at, by panels.py."""
    labels = root / "labels.json"
    command: list[str | Path] = ["shards/build_voc.py", root, out / split]
    command += ["--list", CODE / f"benchmarks/voc-mini-{split}.txt", "--samples-per-shard", "20"]
    command += ["--labels", labels if labels.exists() else "xml", "--saliency", root / "saliency"]
    at_once([command])


def ablation(runs: Path, seed: int, names: Sequence[str], *settings: str) -> list[str | Path]:
    """The command that runs variants with one seed."""
    data = (f"data.train={runs.parent / 'train'}", f"data.val={runs.parent / 'val'}")
    words = [word for text in (*data, *WHOLE, *settings) for word in ("--set", text)]
    command: list[str | Path] = ["-m", "auxdist.cli", "ablate", CONFIG, "--out", runs]
    command += ["--seeds", str(seed), "--variants", *(name for name in names if name in VARIANTS)]
    command += [word for name in names if name in ADDED for word in ("--add", name, *ADDED[name])]
    return [*command, *words]


def post_process(out: Path, name: str, seed: int, round: int) -> list[str | Path]:
    """The command that measures a network at several scales with the CRF."""
    file = post_file(out, name, seed, round)
    command: list[str | Path] = ["-m", "auxdist.cli", "evaluate", run_of(out, name, seed).root]
    return [*command, "--post-process", "--round", str(round), "--json", file]


def post_file(out: Path, name: str, seed: int, round: int) -> Path:
    """Where that measurement is kept."""
    return out / f"post-{name}-seed{seed}-round{round}.json"


def run_of(out: Path, name: str, seed: int, runs: str = "runs") -> RunFolder:
    """The run of a variant."""
    return RunFolder(out / runs / f"{name}-seed{seed}")


def num_rounds() -> int:
    """Rounds of the configuration."""
    return load_config(CODE / CONFIG).train.rounds


def at_once(commands: Sequence[Sequence[str | Path]]) -> None:
    """Run commands of the project beside one another; each must succeed."""
    running = [start(*words) for words in commands]
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit("a command failed, see above; the same command goes on")


def page(out: Path, seeds: Sequence[int]) -> str:
    """All figures as Markdown."""
    config = load_config(CODE / CONFIG)
    command = "python benchmarks/voc_mini.py VOC --out build/voc-mini --results benchmarks/results"
    views = len(config.labels.refresh_scales) * (1 + config.labels.refresh_flip)
    images = [load_index(out / split).num_samples for split in ("train", "val")]
    return f"""# voc-mini: the method on real photographs

`{command}`
on {machine()} One core for each seed.

{images[0]} photographs of VOC train to learn from, {images[1]} of VOC val to measure on, saliency \
maps of U2-Net,
EfficientNet-Lite0 from ImageNet weights, `{CONFIG}`: {config.train.rounds} rounds of \
{config.train.epochs} epochs.
"auxsegnet+" is AuxSegNet+ as the configuration has it, without its unary term; "with unary" has
all its parts, {", ".join(f"`{text}`" for text in WHOLE)} too.
Other than published, a refresh averages {views} views of an image, the first CAMs \
{len(config.labels.cam_scales)} scales,
post-processing {len(config.evaluate.scales)}. mIoU in per cent over 21 classes; an ignored pixel \
of a label counts as missed. These are numbers of auxdist on a small subset, not of AuxSegNet+ \
or its authors.

## Rounds

- labels: mIoU of the pseudo labels that a round learns from, on the training images (masks only
  measure). Covered: the share of pixels that have one; of these: mIoU where they do. "CAM only" is
  what the first CAMs give without saliency.
- val: mIoU of the network, the whole image at a single scale; any class: the IoU of all objects
  against the background there, their shapes; named: how much of what is an object, and found to
  be one, is given the right class. CRF: mIoU with several scales (highest probability) and the CRF.

```
{rounds(out, seeds)}
```

Mean and standard deviation over seeds {", ".join(map(str, seeds))}, first and last round:

```
{first_and_last(out, seeds)}
```

"No refresh" trains for the same number of steps, always on the first labels; its first round is
that with a refresh. By so much is the last network with refreshed labels better:

```
{gains(out, seeds)}
```

What is empty has not been measured; [the first two rounds once more](voc-mini-repeated.md), on \
another
machine, have the CRF after each.

{switches(out, seeds)}

![Twelve images of val](voc-mini.png)

Twelve images of val, by `benchmarks/panels.py`: their labels are what the networks with unary,
seed 0, make of images that they did not learn from.
"""


def rounds(out: Path, seeds: Sequence[int]) -> str:
    """A row for each method, seed and round."""
    rows = []
    for name, title in LOOPS.items():
        for seed in seeds:
            run = run_of(out, name, seed)
            if not run.root.exists():
                continue
            start = RunFolder(out / "runs" / f"start-seed{seed}")
            cams = figures(start, "cam-round-00", miou)
            rows.append([title, str(seed), "CAM only", *cams, *[""] * 6])
            for round in range(num_rounds() + 1):
                of_labels = (miou, covered, miou_of_labelled)
                shown = figures(run, f"labels-round-{round:02d}", *of_labels)
                shown += figures(run, f"val-round-{round:02d}", miou, any_class, named)
                post = post_miou(out, name, seed, round)
                shown.append("" if post is None else f"{post:.2f}")
                if any(shown):
                    rows.append(["", "", f"round {round}", *shown])
    header = ["method", "seed", "", "labels", "covered", "of these"]
    return text_table([*header, "val", "any class", "named", "CRF"], rows)


def first_and_last(out: Path, seeds: Sequence[int]) -> str:
    """A row for each method: first labels, those after the last round, first and last network."""
    last = num_rounds() - 1
    rows = []
    for name, title in LOOPS.items():
        runs = [run_of(out, name, seed) for seed in seeds]
        if not all(run.root.exists() for run in runs):
            continue
        posts = [post_miou(out, name, seed, last) for seed in seeds]
        rows.append(
            [
                title,
                over_seeds(runs, "labels-round-00"),
                over_seeds(runs, f"labels-round-{num_rounds():02d}"),
                over_seeds(runs, "val-round-00"),
                over_seeds(runs, f"val-round-{last:02d}"),
                mean_and_spread(posts),
            ]
        )
    header = ["method", "first labels", "after the last", "first val", "last val", "last, CRF"]
    return text_table(header, rows)


def gains(out: Path, seeds: Sequence[int]) -> str:
    """A row for each method with and without a refresh: by how much the last network is better."""
    last, rows = num_rounds() - 1, []
    for name, control in PAIRS.items():
        for title, figure in (("val", val_miou), ("CRF", post_miou)):
            found = [
                [figure(out, which, seed, last) for seed in seeds] for which in (name, control)
            ]
            differences = [a - b if a and b else None for a, b in zip(*found, strict=True)]
            shown = ["-" if value is None else f"{value:+.2f}" for value in differences]
            rows.append([LOOPS[name], title, *shown, mean_and_spread(differences)])
    return text_table(["method", "", *(f"seed {seed}" for seed in seeds), "mean"], rows)


def switches(out: Path, seeds: Sequence[int]) -> str:
    """The section on the switches, once all have been measured."""
    rows, listed = [], []
    starts = [run_of(out, "start", seed, "switches") for seed in seeds]
    for name in SWITCHES:
        runs = [run_of(out, name, seed, "switches") for seed in seeds]
        if not all(run.complete.exists() or run.failure.exists() for run in runs):
            return "The switches one by one have not been measured."
        for seed, run in zip(seeds, runs, strict=True):
            if failure := read_failure(run):
                listed.append(
                    f"- `{name}`, seed {seed}, ended with {failure['error']}: its labels were not "
                    "adopted."
                )
        labels, network = "labels-round-01", "val-round-00"
        title = TITLES.get(name, name)
        rows.append([title, over_seeds(runs, labels), over_seeds(runs, network)])
        if settings := ", ".join(f"`{text}`" for text in VARIANTS[name]):
            listed.append(f"- `{name}`: {settings}")
    table = text_table(["variant", "labels after the round", "val, single scale"], rows)
    return f"""## Switches

One round of "auxsegnet+ with unary" with each switch turned
({", ".join(f"`{text}`" for text in SHORT)}), from the same
first labels ({over_seeds(starts, "labels-round-00")}) and classifier. Labels are those that the \
refresh makes after the round. Mean and
standard deviation over the same seeds.

```
{table}
```

""" + "\n".join(listed)


def over_seeds(runs: Sequence[RunFolder], name: str) -> str:
    """Mean and standard deviation of a measurement."""
    found = [read_measurement(run, name) for run in runs]
    return mean_and_spread([100 * value.miou if value else None for value in found])


def mean_and_spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation; nothing where a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{spread}"


def post_miou(out: Path, name: str, seed: int, round: int) -> float | None:
    """mIoU with several scales and the CRF in per cent, where it was measured."""
    file = post_file(out, name, seed, round)
    return 100 * float(json.loads(file.read_text())["miou"]) if file.exists() else None


def figures(run: RunFolder, name: str, *wanted: Callable[[Measurement], float]) -> list[str]:
    """What is wanted of a measurement; nothing where there is none."""
    found = read_measurement(run, name)
    return [f"{figure(found):.2f}" if found else "" for figure in wanted]


def val_miou(out: Path, name: str, seed: int, round: int) -> float | None:
    """mIoU at a single scale in per cent, where it was measured."""
    found = read_measurement(run_of(out, name, seed), f"val-round-{round:02d}")
    return miou(found) if found else None


def miou(measured: Measurement) -> float:
    """mIoU in per cent."""
    return 100 * measured.miou


def covered(measured: Measurement) -> float:
    """Per cent of the pixels that have a label."""
    return 100 * measured.coverage


def miou_of_labelled(measured: Measurement) -> float:
    """mIoU of the pixels that have a label, in per cent."""
    labelled = measured.matrix.copy()
    labelled[:, -1] = 0
    return miou(replace(measured, matrix=labelled))


def any_class(measured: Measurement) -> float:
    """IoU of the objects, of whatever class, against the background, in per cent."""
    objects = measured.matrix[1:, 1:-1].sum()
    return float(100 * objects / (measured.matrix.sum() - measured.matrix[0, 0]))


def named(measured: Measurement) -> float:
    """Per cent of the objects' pixels found to be an object's that have the right class."""
    objects = measured.matrix[1:, 1:-1]
    return float(100 * objects.trace() / objects.sum())


if __name__ == "__main__":
    main()
