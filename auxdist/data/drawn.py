"""Scenes of `scenes.py` as items of a build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2

from auxdist.data.palette import voc_palette
from auxdist.data.reader import decode_image
from auxdist.data.recipe import RawSample, Recipe, SaliencyMaker
from auxdist.data.scenes import KINDS, draw_scene

JPEG_QUALITY = 92


@dataclass(frozen=True)
class DrawnItem:
    """A scene that is drawn when it is read."""

    seed: int
    split: str
    number: int
    size: int

    @property
    def key(self) -> str:
        """Split and number."""
        return f"{self.split}-{self.number:06d}"

    @property
    def num_bytes(self) -> int:
        """About half a byte a pixel."""
        return self.size**2 // 2

    @property
    def files(self) -> tuple[Path, ...]:
        """None."""
        return ()

    def read(self) -> RawSample:
        """Draw the scene; saliency is then estimated from what the JPEG decodes to."""
        scene = draw_scene(self.seed, self.split, self.number, self.size)
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        jpeg = cv2.imencode(".jpg", scene.image[..., ::-1], quality)[1].tobytes()
        return RawSample(jpeg, decode_image(jpeg, self.key), scene.classes, scene.labels)


def drawn_recipe(
    seed: int, split: str, count: int, size: int, saliency: SaliencyMaker | None
) -> Recipe:
    """A split of `count` scenes; the first ones are the same for every count."""
    return Recipe(
        split=split,
        classes=tuple(kind.name for kind in KINDS),
        palette=voc_palette(len(KINDS)),
        ground_truth=True,
        items=[DrawnItem(seed, split, number, size) for number in range(count)],
        saliency=saliency,
        origin={"source": "drawn scenes", "seed": seed, "size": size},
    )
