"""Procedural scenes with exact ground truth, for the demo and for tests.

A scene is a cluttered grey-brown ground with one to three objects and a few distractors.
Each class is a body and a head. The body is large, and weak evidence: two classes share each kind,
and now and then an object has the body of another class. The head is a small emblem that only one
class has. A classifier therefore looks at heads: its CAM peaks there, and misses or smears bodies.
Bodies fade towards their tail, and distractors
are as colourful as objects, so saliency errs as it does on photographs.

Legend: H W image; u v coordinates of an object, in units of its length: u along the axis.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from auxdist.errors import DataError

Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Kind:
    """A class: which body it shares with another one, and its own head emblem."""

    name: str
    body: int
    plate: Rgb
    symbol: str
    ink: Rgb


KINDS: tuple[Kind, ...] = (
    Kind("bee", 0, (250, 205, 30), "bars", (25, 20, 25)),
    Kind("wasp", 0, (30, 60, 190), "cross", (250, 240, 240)),
    Kind("carp", 1, (240, 240, 240), "ring", (200, 30, 40)),
    Kind("perch", 1, (30, 150, 70), "dot", (250, 230, 60)),
    Kind("kite", 2, (190, 40, 160), "triangle", (250, 250, 250)),
    Kind("glider", 2, (20, 20, 30), "dot", (60, 220, 230)),
    Kind("tulip", 3, (225, 60, 40), "cross", (250, 230, 90)),
    Kind("clover", 3, (70, 210, 220), "triangle", (120, 20, 90)),
)
"""Classes 1..8 of the ground truth, in this order."""


@dataclass(frozen=True)
class Body:
    """Outline and two-tone texture that two classes share."""

    aspect: float
    bumps: int
    bump_height: float
    texture: str
    light: Rgb
    dark: Rgb


BODIES: tuple[Body, ...] = (
    Body(0.50, 2, 0.06, "stripes", (222, 172, 82), (120, 82, 40)),
    Body(0.42, 3, 0.10, "scales", (120, 165, 205), (52, 86, 140)),
    Body(0.72, 4, 0.16, "checks", (205, 120, 165), (120, 58, 112)),
    Body(0.62, 5, 0.14, "dots", (140, 200, 110), (60, 110, 52)),
)


OBJECT_RADIUS = (0.23, 0.32)
DISTRACTOR_RADIUS = (0.06, 0.11)
"""Smallest and largest, as parts of the image's shorter side; of a single object."""


USUAL_BODY = 0.85
"""So often an object has the body of its class; else it has any of the bodies."""


@dataclass(frozen=True)
class Scene:
    """An image (H, W, 3) uint8 RGB and its exact labels (H, W) uint8: 0 ground, 1.. classes."""

    image: np.ndarray
    labels: np.ndarray

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes in sight, counted from 0."""
        return tuple(int(c) - 1 for c in np.unique(self.labels) if c > 0)


def draw_scene(seed: int, split: str, number: int, size: int) -> Scene:
    """Scene `number` of a split: a pure function of the arguments.

    Sides vary between 7/8 and 9/8 of `size`.

    Raises:
        DataError: `size` is too small for the emblems to be seen.
    """
    if size < 64:
        raise DataError(f"scene size {size}: an emblem needs at least 64 pixels; use 128 or so.")
    random = np.random.default_rng([seed, zlib.crc32(split.encode()), number])
    height, width = (int(s) for s in random.integers(size * 7 // 8, size * 9 // 8 + 1, 2))
    canvas = _ground(random, height, width)  # (H, W, 3) float32
    labels = np.zeros((height, width), np.uint8)
    num_objects = int(random.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
    smallest, largest = (radius / num_objects**0.15 for radius in OBJECT_RADIUS)  # room for all
    objects = _places(random, [], num_objects, (smallest, largest), (height, width))
    num_distractors = int(random.integers(1, 3))
    for place in _places(random, objects, num_distractors, DISTRACTOR_RADIUS, (height, width)):
        _draw_distractor(random, canvas, place)
    for place in objects:
        _draw_object(random, canvas, labels, place, int(random.integers(len(KINDS))))
    noise = random.normal(0, 5, canvas.shape)
    image = np.clip(cv2.GaussianBlur(canvas, (0, 0), 0.6) + noise, 0, 255)
    return Scene(image.astype(np.uint8), labels)


@dataclass(frozen=True)
class Place:
    """A free disc of the image, in pixels, and the direction of the object in it."""

    x: float
    y: float
    radius: float
    angle: float


def _places(
    random: np.random.Generator,
    taken: list[Place],
    count: int,
    sizes: tuple[float, float],
    shape: tuple[int, int],
) -> list[Place]:
    """Up to `count` more discs, which hardly overlap one another nor `taken`."""
    places: list[Place] = []
    for _ in range(60 * count):
        radius = min(shape) * float(random.uniform(*sizes))
        y, x = (float(random.uniform(0.9 * radius, side - 0.9 * radius)) for side in shape)
        place = Place(x, y, radius, float(random.uniform(0, 2 * np.pi)))
        if all(np.hypot(x - p.x, y - p.y) > 0.85 * (radius + p.radius) for p in taken + places):
            places.append(place)
        if len(places) == count:
            break
    return places


def _smooth_noise(random: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """(H, W) float32 noise of mean 0 and deviation 1, about `cell` pixels coarse."""
    rows, columns = int(height / cell) + 3, int(width / cell) + 3
    coarse = random.normal(0, 1, (rows, columns)).astype(np.float32)
    noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return (noise - noise.mean()) / (noise.std() + 1e-6)


def _ground(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W, 3) float32: a dull ground of several scales of noise, with strokes over it."""
    base = np.array([118, 112, 104], np.float32) + random.normal(0, 12, 3).astype(np.float32)
    canvas = np.broadcast_to(base, (height, width, 3)).copy()
    for cell, strength in ((48, 14), (16, 9), (6, 8), (2.5, 7)):
        canvas += strength * _smooth_noise(random, height, width, cell)[..., None]
    canvas += 5 * np.stack([_smooth_noise(random, height, width, 30) for _ in range(3)], axis=-1)
    for _ in range(int(random.integers(10, 25))):
        start, stop = random.integers(-10, max(height, width) + 10, (2, 2))
        shade = [float(v) for v in base + random.normal(0, 28) + random.normal(0, 6, 3)]
        cv2.line(
            canvas, start.tolist(), stop.tolist(), shade, int(random.integers(1, 4)), cv2.LINE_AA
        )
    return canvas


def _local(place: Place, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates u, v (H, W) of every pixel in the frame of a place."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = (x - place.x) / place.radius, (y - place.y) / place.radius
    cosine, sine = np.cos(place.angle), np.sin(place.angle)
    return cosine * x + sine * y, cosine * y - sine * x


def _blend(canvas: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> None:
    canvas += alpha[..., None] * (colour - canvas)


def _cover(distance: np.ndarray, radius: float) -> np.ndarray:
    """How much of each pixel lies inside (`distance` < 0, in units of `radius` pixels)."""
    return np.clip(0.5 - distance * radius, 0, 1).astype(np.float32)


def _draw_object(
    random: np.random.Generator, canvas: np.ndarray, labels: np.ndarray, place: Place, kind: int
) -> None:
    """Draw body and head, and their label wherever they cover most of a pixel."""
    u, v = _local(place, *labels.shape)
    usual = random.random() < USUAL_BODY
    body = BODIES[KINDS[kind].body if usual else int(random.integers(len(BODIES)))]
    outline = _outline(random, body, u, v)
    cover = _cover(outline, place.radius)
    fade = np.clip(0.62 + 0.55 * (u + 0.35), float(random.uniform(0.4, 0.65)), 1)
    _blend(canvas, _body_colour(random, body, u, v), cover * fade)
    head_radius = max(0.36, 10.5 / place.radius)
    x, y = (u - 0.62) / head_radius, v / head_radius
    disc = _cover((np.hypot(x, y) - 1) * head_radius, place.radius)
    _blend(canvas, np.array(KINDS[kind].plate, np.float32), disc)
    symbol = SYMBOLS[KINDS[kind].symbol](x, y)
    _blend(
        canvas, np.array(KINDS[kind].ink, np.float32), _cover(symbol * head_radius, place.radius)
    )
    labels[np.maximum(cover, disc) > 0.5] = kind + 1


def _outline(random: np.random.Generator, body: Body, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(H, W) signed distance-like value, below 0 inside a bumpy ellipse."""
    v = v / (body.aspect * float(random.uniform(0.9, 1.1)))
    theta = np.arctan2(v, u)
    bumps = 1 + body.bump_height * np.cos(body.bumps * theta + float(random.uniform(-0.4, 0.4)))
    return (np.hypot(u, v) - 0.92 * bumps / (1 + body.bump_height)) * body.aspect


def _body_colour(
    random: np.random.Generator, body: Body, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """(H, W, 3) float32 two-tone texture, its shades varied a little from object to object."""
    wave = TEXTURES[body.texture](u * 9 + float(random.uniform(0, 6)), v * 9)
    mix = np.clip(0.5 + 1.5 * wave, 0, 1)[..., None].astype(np.float32)
    shift = random.normal(0, 9, 3) + random.normal(0, 9)
    light, dark = (np.array(tone, np.float32) + shift for tone in (body.light, body.dark))
    return (dark + mix * (light - dark)).astype(np.float32)


def _draw_distractor(random: np.random.Generator, canvas: np.ndarray, place: Place) -> None:
    """A colourful blob or box of no class."""
    u, v = _local(place, *canvas.shape[:2])
    aspect = float(random.uniform(0.6, 1))
    round_ = np.hypot(u, v / aspect) - 0.9
    square = np.maximum(abs(u), abs(v) / aspect) - 0.8
    colour = cv2.cvtColor(
        np.array([[[random.uniform(0, 360), random.uniform(0.4, 0.8), random.uniform(0.4, 0.9)]]])
        .astype(np.float32), cv2.COLOR_HSV2RGB,
    )[0, 0]  # fmt: skip
    shape = round_ if random.random() < 0.5 else square
    _blend(canvas, 255 * colour, 0.9 * _cover(shape * aspect, place.radius))


TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "stripes": lambda u, v: np.sin(u + 0 * v),
    "scales": lambda u, v: np.sin(u + 1.2 * np.abs(np.sin(v))),
    "checks": lambda u, v: np.sign(np.sin(u) * np.sin(v)),
    "dots": lambda u, v: np.sin(u) * np.sin(v) * 2 - 0.5,
}
"""Waves (H, W), light where above 0, of the body's coordinates in radians."""

SYMBOLS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "bars": lambda x, y: np.maximum(abs(abs(x) - 0.35) - 0.17, np.hypot(x, y) - 0.95),
    "cross": lambda x, y: np.maximum(np.minimum(abs(x), abs(y)) - 0.2, np.hypot(x, y) - 0.8),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.55) - 0.2,
    "dot": lambda x, y: np.hypot(x, y) - 0.5,
    "triangle": lambda x, y: np.maximum(-x - 0.4, 0.5 * x + 0.87 * abs(y) - 0.4),
}
"""Shapes (H, W) below 0 inside, of coordinates in units of the head's radius."""
