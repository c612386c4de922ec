"""How a run looks at images: CAMs before and after the affinity, saliency, labels by round.

    python benchmarks/panels.py RUN --split-folder SHARDS --out panels.png

The images are spread evenly over the split, which needs saliency maps and ground truth. The labels
of a round are what its network makes of these images, which it did not learn from.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from auxdist.config import Config
from auxdist.configfile import load_config
from auxdist.data.index import Index, Sample, load_index
from auxdist.data.reader import SourceSample, read_ground_truth, read_sample
from auxdist.evaluate.panels import coloured, tile_row, title_row
from auxdist.evaluate.predict import Inference, predict
from auxdist.labels.fuse import normalise_cam
from auxdist.labels.initial import InitialLabels
from auxdist.labels.refresh import RefinedLabels
from auxdist.labels.viewer import Viewer
from auxdist.model.auxsegnet import AuxSegNet
from auxdist.records import CLASSIFIER_ROUND
from auxdist.runfolder import RunFolder, atomic_file
from auxdist.train.networks import trained_network


def main() -> None:
    """Parse the command line, draw, say where the picture is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--split-folder", type=Path, required=True, help="image shards")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--images", type=int, default=12, help="number of images (12)")
    wanted = parser.parse_args()
    run = RunFolder(wanted.run)
    config = load_config(run.config)
    index = load_index(wanted.split_folder)
    stages = range(CLASSIFIER_ROUND, config.train.rounds)
    nets = [trained_network(run, config, stage).net.eval() for stage in stages]
    rounds = [f"labels {stage + 1}" for stage in stages]
    before, after = "saliency", "saliency after"
    titles = ["image", "CAM", "refined CAM", before, after, *rounds, "prediction", "truth"]
    rows = [
        tile_row(tiles(config, nets, index, shard, sample))
        for shard, sample in chosen(index, wanted.images)
    ]
    picture = np.concatenate([title_row(titles), *rows])
    with atomic_file(wanted.out) as temporary:
        temporary.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
    print(wanted.out)


def chosen(index: Index, count: int) -> Iterator[tuple[int, Sample]]:
    """Every n-th image of the split."""
    samples = [(shard, s) for shard in range(len(index.shards)) for s in index.samples(shard)]
    return iter(samples[:: max(1, len(samples) // count)][:count])


@torch.inference_mode()
def tiles(
    config: Config, nets: list[AuxSegNet], index: Index, shard: int, sample: Sample
) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 pictures of an image, one for each column."""
    source = read_sample(index, shard, sample)
    seen_by = [
        Viewer(net, image_scale=config.data.image_scale, precision=config.labels.precision)
        for net in nets
    ]
    yield source.image
    outputs = seen_by[-1].outputs(seen_by[-1].views(source.image, 1.0, mirrored=False))
    # Of an image without classes no CAM is left: its picture is that of none.
    cam = normalise_cam(outputs.cam[0, list(source.classes) or [0]]) * bool(source.classes)
    for shown in (cam, outputs.affinity.apply(cam[None])[0]):
        yield heat(shown.amax(0), source)
    labels = [InitialLabels(seen_by[0], config.labels).make(source)]
    labels += [RefinedLabels(viewer, config.labels).make(source) for viewer in seen_by[1:]]
    for maps in (labels[0], labels[-1]):
        yield np.repeat(maps.saliency[..., None], 3, axis=2)
    for maps in labels:
        yield coloured(maps.segmentation, index.palette)
    found = predict(nets[-1], source.image, "cpu", Inference.single_scale(config))
    yield coloured(found, index.palette)
    yield coloured(read_ground_truth(index, shard, sample), index.palette)


def heat(cam: Tensor, source: SourceSample) -> np.ndarray:
    """A CAM (h, w) in [0, 1] as colours over the image (H, W, 3)."""
    height, width = source.image.shape[:2]
    strength = cv2.resize((cam.clamp(0, 1) * 255).byte().numpy(), (width, height))
    colours = cv2.applyColorMap(strength, cv2.COLORMAP_JET)[..., ::-1]
    return cv2.addWeighted(source.image, 0.4, np.ascontiguousarray(colours), 0.6, 0)


if __name__ == "__main__":
    main()
