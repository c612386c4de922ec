"""Saliency maps for images that come without them: a network through OpenCV, or a plain estimate.

Every maker of maps is a callable from an image (H, W, 3) uint8 RGB to a map (H, W) uint8, 255 most
salient; it is given the sample's key as well, for ready maps are found by it.

Legend: H W image; h w the small copy that the plain estimator works on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from auxdist.data.reader import check_size, decode_gray
from auxdist.errors import DataError
from auxdist.runfolder import file_sha256

WORKING_SIDE = 128
"""Longer side (pixels) of the copy that the plain estimator works on."""

NETWORK_SIDE = 320
"""Side (pixels) of the input of a saliency network."""

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True)
class PlainSaliency:
    """Maps from `plain_saliency`."""

    name: str = "plain estimator (weak substitute)"

    def files(self, key: str) -> tuple[Path, ...]:
        """None."""
        return ()

    def __call__(self, key: str, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) uint8."""
        return plain_saliency(pixels)


@dataclass(frozen=True)
class ReadySaliency:
    """Maps that somebody else made: `folder`/KEY.png, 8-bit gray, of the image's size.

    `missing` makes those that are not there.
    """

    folder: Path
    name: str
    missing: OnnxSaliency | None = None

    @classmethod
    def of(cls, folder: Path, missing: OnnxSaliency | None = None) -> ReadySaliency:
        """Check the folder.

        Raises:
            DataError: there is no such folder.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: is no folder; --saliency names a folder of KEY.png maps.")
        name = f"ready maps of {folder.resolve().name}/"
        if missing:
            name += f", others by {missing.name}"
        return cls(folder.resolve(), name, missing)

    def files(self, key: str) -> tuple[Path, ...]:
        """The map of a sample, there or not."""
        return (self.folder / f"{key}.png",)

    def __call__(self, key: str, pixels: np.ndarray) -> np.ndarray:
        """The map of a sample.

        Raises:
            DataError: it is missing, damaged or of another size than the image.
        """
        (path,) = self.files(key)
        try:
            values = decode_gray(path.read_bytes(), str(path))
        except OSError as error:
            if self.missing and isinstance(error, FileNotFoundError):
                return self.missing(key, pixels)
            raise DataError(
                f"{path}: no saliency map for {key} ({error.strerror}); add it, or "
                "have it made by --saliency-model FILE.onnx."
            ) from error
        check_size(values, pixels.shape[:2], str(path))
        return values


@dataclass(frozen=True)
class OnnxSaliency:
    """Maps from a saliency network in ONNX form (U2-Net and its like), run by OpenCV."""

    path: Path
    name: str

    @classmethod
    def of(cls, path: Path) -> OnnxSaliency:
        """Check and name the network.

        Raises:
            DataError: the file cannot be read, or is no network that OpenCV can run.
        """
        try:
            digest = file_sha256(path)
        except OSError as error:
            raise DataError(f"{path}: no saliency network ({error.strerror}).") from error
        _network(path)
        return cls(path.resolve(), f"network {path.name} (sha256 {digest[:12]})")

    def files(self, key: str) -> tuple[Path, ...]:
        """None; the network itself is in `name`."""
        return ()

    def __call__(self, key: str, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) uint8, the network's first output, min-max normalised.

        Raises:
            DataError: the network does not map 1x3x320x320 to one map.
        """
        net = _network(self.path)
        try:
            net.setInput(_network_input(pixels))
            output = np.squeeze(net.forward(net.getUnconnectedOutLayersNames()[0]))
        except cv2.error as error:
            raise DataError(f"{self.path}: fails on {key} ({error.err}).") from error
        if output.ndim != 2:
            raise DataError(
                f"{self.path}: its first output is {output.shape}, one map expected; take a "
                "saliency network of the U2-Net kind."
            )
        low, high = float(output.min()), float(output.max())
        values = (output - low) / max(high - low, 1e-8)
        height, width = pixels.shape[:2]
        large = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.clip(np.round(255 * large), 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _network(path: Path) -> cv2.dnn.Net:
    """The network, loaded once in each process."""
    try:
        return cv2.dnn.readNetFromONNX(str(path))
    except cv2.error as error:
        raise DataError(
            f"{path}: is no ONNX network that OpenCV {cv2.__version__} can run ({error.err})."
        ) from error


def _network_input(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (1, 3, 320, 320) float32: over its maximum, then ImageNet's mean."""
    side = (NETWORK_SIDE, NETWORK_SIDE)
    small = cv2.resize(pixels, side, interpolation=cv2.INTER_AREA).astype(np.float32)
    small /= max(float(small.max()), 1.0)
    return np.ascontiguousarray(((small - _MEAN) / _DEVIATION).transpose(2, 0, 1)[None])


def plain_saliency(image: np.ndarray) -> np.ndarray:
    """Saliency (H, W) uint8 of an RGB image (H, W, 3) uint8 from its pixels alone.

    The mean of three classic cues on a small smoothed copy in Lab, sharpened by a logistic curve:

    * minimum barrier distance to the image's border (Zhang et al., ICCV 2015): a region is salient
      when every path from it to the border crosses an edge;
    * distance from the colours of the border (boundary background prior);
    * centre-surround colour contrast at several scales (Itti et al., PAMI 1998).

    It finds colourful things that stand apart, objects or not, and knows nothing of classes: a weak
    substitute for a saliency network. It is deterministic.
    """
    height, width = image.shape[:2]
    scale = WORKING_SIDE / max(height, width)
    side = max(round(width * scale), 8), max(round(height * scale), 8)
    small = cv2.resize(image, side, interpolation=cv2.INTER_AREA)
    small = cv2.bilateralFilter(cv2.medianBlur(small, 5), 7, 40, 5)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)  # (h, w, 3)
    lab *= np.array([0.6, 1, 1], np.float32)
    cues = (barrier_distance(lab), border_contrast(lab), surround_contrast(lab))
    fused = np.mean([_normalised(cue) for cue in cues], axis=0)  # (h, w)
    fused *= 0.6 + 0.4 * _centre_prior(*fused.shape)
    fused = _normalised(cv2.GaussianBlur(fused, (0, 0), 1))
    level = float(np.clip(_otsu(fused), 0.2, 0.6))
    sharp = 1 / (1 + np.exp(-20 * (fused - level)))
    large = cv2.resize(sharp.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(255 * _normalised(large), 0, 255).astype(np.uint8)


def barrier_distance(lab: np.ndarray, num_sweeps: int = 3) -> np.ndarray:
    """Approximate minimum barrier distance (h, w) from the border, summed over channels.

    The barrier of a path is its highest minus its lowest value; the distance of a pixel is the
    least barrier of all paths from the border. Sweeps in the four directions replace raster scans.
    """
    high, low = lab.copy(), lab.copy()
    distance = np.full_like(lab, np.inf)  # (h, w, 3), each channel on its own
    distance[[0, -1]] = 0
    distance[:, [0, -1]] = 0
    for _ in range(num_sweeps):
        for turned in (False, True):
            views = [np.swapaxes(a, 0, 1) if turned else a for a in (lab, high, low, distance)]
            for step in (1, -1):
                _sweep(*(view[::step] for view in views))
    return distance.sum(axis=2)


def _sweep(lab: np.ndarray, high: np.ndarray, low: np.ndarray, distance: np.ndarray) -> None:
    """Offer every row the paths that end in the row before it, and take the better ones."""
    for row in range(1, len(lab)):
        top = np.maximum(high[row - 1], lab[row])
        bottom = np.minimum(low[row - 1], lab[row])
        better = top - bottom < distance[row]
        high[row] = np.where(better, top, high[row])
        low[row] = np.where(better, bottom, low[row])
        distance[row] = np.where(better, top - bottom, distance[row])


def border_contrast(lab: np.ndarray) -> np.ndarray:
    """Mahalanobis distance (h, w) from the colours of the border, the nearest two sides' mean."""
    depth = max(2, min(lab.shape[:2]) // 12)
    sides = (lab[:depth], lab[-depth:], lab[:, :depth], lab[:, -depth:])
    maps = []
    for side in sides:
        colours = side.reshape(-1, 3).astype(np.float64)
        mean = colours.mean(axis=0)
        precision = np.linalg.inv(np.cov(colours, rowvar=False) + 20 * np.eye(3))
        away = lab - mean
        maps.append(np.sqrt(np.einsum("hwi,ij,hwj->hw", away, precision, away)))
    return np.sort(np.stack(maps), axis=0)[:3].mean(axis=0)


def surround_contrast(lab: np.ndarray) -> np.ndarray:
    """Colour distance (h, w) between each pixel's neighbourhood and wider surrounds."""
    maps = []
    for centre, surround in ((1.5, 12), (3, 20), (5, 30)):
        inner = cv2.GaussianBlur(lab, (0, 0), centre)
        outer = cv2.GaussianBlur(lab, (0, 0), surround)
        maps.append(_normalised(np.linalg.norm(inner - outer, axis=2)))
    return np.mean(maps, axis=0)


def _centre_prior(height: int, width: int) -> np.ndarray:
    y = np.linspace(-1, 1, height)[:, None]
    x = np.linspace(-1, 1, width)[None]
    return np.exp(-(x**2 + y**2))


def _normalised(values: np.ndarray) -> np.ndarray:
    """Values stretched from [min, 99th percentile] to [0, 1]; zeros where there is no contrast."""
    low, high = float(values.min()), float(np.percentile(values, 99))
    if high - low < 1e-6:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0, 1)


def _otsu(values: np.ndarray) -> float:
    level, _ = cv2.threshold(
        np.round(255 * values).astype(np.uint8), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU
    )
    return level / 255
