"""Speed of the dense CRFs beside pydensecrf2: python benchmarks/crf.py --images FOLDER

Every form refines every photograph of 375x500, one after the other and in changing order, on one
thread. Figures are medians over photographs and repetitions. Writes benchmarks/results/crf.md.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from collections.abc import Callable
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

import cv2
import numpy as np
import torch
from machine import machine
from tabulate import tabulate

from auxdist.ops.crf import saliency_crf, segmentation_crf
from auxdist.ops.crf_terms import (
    SALIENCY_KERNELS,
    SEGMENTATION_KERNELS,
    Kernels,
    saliency_unary,
)
from auxdist.ops.crf_torch import saliency_crf_batch, segmentation_crf_batch

HERE = Path(__file__).resolve().parent
HEIGHT, WIDTH, LABELS = 375, 500, 21
REFERENCE = "pydensecrf2"
GPU_BATCH = 16


class Input(NamedTuple):
    """image (H, W, 3) uint8, saliency (H, W), probabilities (21, H, W)."""

    image: np.ndarray
    saliency: np.ndarray
    probabilities: np.ndarray


Run = Callable[[Input], np.ndarray]


class Seconds(NamedTuple):
    """Of one call."""

    cpu: float
    wall: float


def smooth_probabilities(seed: int) -> np.ndarray:
    """(21, H, W): softmax of smooth random logits, about as decided as a network's output."""
    coarse = np.random.default_rng(seed).random((LABELS, 12, 16), np.float32) * 6
    logits = np.stack([cv2.resize(plane, (WIDTH, HEIGHT)) for plane in coarse])
    odds = np.exp(logits - logits.max(0))
    return odds / odds.sum(0)


def load(folder: Path, num_images: int) -> list[Input]:
    """The first photographs of the right size."""
    inputs: list[Input] = []
    for path in sorted(folder.glob("*.jpg")):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        if image is None or image.shape[:2] != (HEIGHT, WIDTH) or len(inputs) == num_images:
            continue
        probabilities = smooth_probabilities(len(inputs))
        inputs.append(Input(image, 1 - probabilities[:7].sum(0), probabilities))
    return inputs


def dense(image: np.ndarray, unary: np.ndarray, kernels: Kernels, iterations: int) -> np.ndarray:
    """Marginals by pydensecrf2."""
    from pydensecrf.densecrf import DenseCRF2D

    model = DenseCRF2D(WIDTH, HEIGHT, len(unary))
    model.setUnaryEnergy(unary.reshape(len(unary), -1).astype(np.float32))
    model.addPairwiseGaussian(sxy=kernels.gaussian_sxy, compat=kernels.gaussian_compat)
    model.addPairwiseBilateral(
        sxy=kernels.bilateral_sxy,
        srgb=kernels.bilateral_srgb,
        rgbim=image,
        compat=kernels.bilateral_compat,
    )
    return np.array(model.inference(iterations)).reshape(unary.shape)


def forms() -> dict[str, dict[str, Run]]:
    """The CRFs, each with its forms on one CPU core."""
    saliency: dict[str, Run] = {
        REFERENCE: lambda x: dense(x.image, saliency_unary(x.saliency), SALIENCY_KERNELS, 1)[1],
        "auxdist, numba": lambda x: saliency_crf(x.image, x.saliency),
        "auxdist, torch": lambda x: saliency_crf_batch(
            torch.from_numpy(x.image)[None], torch.from_numpy(x.saliency)[None]
        )[0].numpy(),
    }
    segmentation: dict[str, Run] = {
        REFERENCE: lambda x: dense(x.image, -np.log(x.probabilities), SEGMENTATION_KERNELS, 10),
        "auxdist, numba": lambda x: segmentation_crf(x.image, x.probabilities),
        "auxdist, torch": lambda x: segmentation_crf_batch(
            torch.from_numpy(x.image)[None], torch.from_numpy(x.probabilities)[None]
        )[0].numpy(),
    }
    if find_spec("pydensecrf") is None:
        del saliency[REFERENCE], segmentation[REFERENCE]
    return {"saliency, 1 iteration": saliency, "21 labels, 10 iterations": segmentation}


def measure(runs: dict[str, Run], inputs: list[Input], repeats: int) -> dict[str, list[Seconds]]:
    """Seconds of every call, the forms alternating."""
    for run in runs.values():
        run(inputs[0])  # compile, or load the compiled code
    seconds: dict[str, list[Seconds]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for number, each in enumerate(inputs):
            names = list(runs)[:: 1 if (repeat + number) % 2 else -1]
            for name in names:
                cpu, wall = time.process_time(), time.perf_counter()
                runs[name](each)
                seconds[name].append(Seconds(time.process_time() - cpu, time.perf_counter() - wall))
    return seconds


def rows(crf: str, runs: dict[str, Run], inputs: list[Input], repeats: int) -> list[list[str]]:
    """Table rows of one CRF; ratios are medians of the ratios call by call."""
    seconds = measure(runs, inputs, repeats)
    reference = seconds.get(REFERENCE)
    table = []
    for name, calls in seconds.items():
        cpu, wall = (median(column) for column in zip(*calls, strict=True))
        ratios = ["-", "-"]
        if reference:
            pairs = list(zip(reference, calls, strict=True))
            ratios = [
                f"{median(theirs.cpu / ours.cpu for theirs, ours in pairs):.2f}",
                f"{median(theirs.wall / ours.wall for theirs, ours in pairs):.2f}",
            ]
        difference = "-"
        if REFERENCE in runs:
            largest = max(float(np.abs(runs[name](x) - runs[REFERENCE](x)).max()) for x in inputs)
            difference = f"{largest:.1e}"
        times = [f"{1e3 * cpu:.0f}", f"{1e3 * wall:.0f}", f"{1 / cpu:.1f}"]
        table.append([crf, name, *times, *ratios, difference])
    return table


def gpu_lines(inputs: list[Input]) -> list[str]:
    """Images per second of the batched form on the GPU, where there is one."""
    if not torch.cuda.is_available():
        return ["No GPU on this machine: the batched torch form was measured on the CPU only."]
    batch = [inputs[i % len(inputs)] for i in range(GPU_BATCH)]
    images, saliency, probabilities = (
        torch.from_numpy(np.stack(parts)).cuda() for parts in zip(*batch, strict=True)
    )
    lines = []
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "saliency": lambda: saliency_crf_batch(images, saliency),
        "21 labels": lambda: segmentation_crf_batch(images, probabilities),
    }
    for name, call in calls.items():
        call()
        walls = []
        for _ in range(10):
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            walls.append(time.perf_counter() - start)
        lines.append(
            f"{torch.cuda.get_device_name()}, batches of {GPU_BATCH}, {name}: "
            f"{GPU_BATCH / median(walls):.0f} images/s (median of 10)."
        )
    return lines


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG photographs")
    parser.add_argument("--num-images", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "crf.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    inputs = load(options.images, options.num_images)
    if not inputs:
        parser.error(f"{options.images} holds no JPEG of {WIDTH}x{HEIGHT}; name another --images.")
    table = [
        row for crf, runs in forms().items() for row in rows(crf, runs, inputs, options.repeats)
    ]
    headers = ["CRF", "form", "CPU ms", "wall ms", "images/s of CPU time", "x CPU", "x wall"]
    lines = [
        f"# Dense CRFs at {HEIGHT}x{WIDTH}, one thread, {date.today()}",
        "",
        f"`python benchmarks/crf.py --images FOLDER --num-images {len(inputs)} "
        f"--repeats {options.repeats}`",
        "",
        f"{machine()} {len(inputs)} photographs x {options.repeats} repetitions, forms "
        "alternating; medians. x: times as fast as pydensecrf2, median of the ratios call by "
        "call. Difference: the largest of all marginals to pydensecrf2's.",
        "",
        tabulate(table, [*headers, "difference"], tablefmt="github", disable_numparse=True),
        "",
        *gpu_lines(inputs),
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
