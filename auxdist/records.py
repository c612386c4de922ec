"""Typed values that cross rooms.

Shape legend: B samples on this rank, C foreground classes, S crop side in pixels,
h w feature map (stride 8), H W image.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from auxdist.ops.affinity import Affinity

IGNORE = 255
"""Label of a pixel that no dense loss looks at."""
MAX_CLASSES = IGNORE - 1
"""Labels are 8-bit: 0 background, 1..C, and IGNORE."""


@dataclass(frozen=True)
class Batch:
    """The rows of one global batch that fall to one rank.

    image         (B, 3, S, S) uint8 RGB; padding is 0 and lies outside `extent`
    extent        (B, 2) int64 height and width of the part that is image, not padding
    classes       (B, C) float32, 1 where the image has the class
    segmentation  (B, S, S) uint8: 0 background, 1..C, 255 ignore
    saliency      (B, S, S) uint8: 0, 1, 255 ignore
    weight        (B,) float32: 1 for a sample, 0 for a row that only fills up
    noise         (B,) int64: the key of this sample's dropout masks
    keys          the sample keys, "" for rows that only fill up
    quarantined   keys of this batch that could not be read (their weight is 0)
    """

    image: Tensor
    extent: Tensor
    classes: Tensor
    segmentation: Tensor
    saliency: Tensor
    weight: Tensor
    noise: Tensor
    keys: tuple[str, ...]
    quarantined: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (the DataLoader calls this)."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in _TENSORS})

    def part(self, start: int, stop: int) -> Batch:
        """Rows start..stop-1, for gradient accumulation."""
        tensors = {name: getattr(self, name)[start:stop] for name in _TENSORS}
        return replace(self, **tensors, keys=self.keys[start:stop], quarantined=())


_TENSORS = tuple(f.name for f in fields(Batch) if f.name not in ("keys", "quarantined"))


@dataclass(frozen=True)
class Outputs:
    """What AuxSegNet computes for a batch; logits at feature resolution (h, w).

    classes               (B, C) logits of the image-level classifier
    cam                   (B, C, h, w) raw class activation maps
    saliency              (B, 1, h, w) logits before, `saliency_refined` after refinement; None in a
                          network without the saliency branch
    segmentation          (B, C+1, h, w) logits before, `segmentation_refined` after refinement
    affinity              the cross-task affinity A_CT as an operator on (B, K, h, w) maps, or what
                          takes its place in ablations

    Where nothing refines, the refined logits are those before.
    """

    classes: Tensor
    cam: Tensor
    saliency: Tensor | None
    saliency_refined: Tensor | None
    segmentation: Tensor
    segmentation_refined: Tensor
    affinity: Affinity


@dataclass(frozen=True)
class Normaliser:
    """What the loss sums of a global batch are divided by (float64 scalars, over all ranks)."""

    samples: float
    saliency_pixels: float
    segmentation_pixels: float


@dataclass(frozen=True)
class Losses:
    """Loss terms, each already divided by the global normaliser: ranks and micro-batches add up.

    `total` carries the gradient; `parts` are detached scalars by name, for logging.
    """

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True, order=True)
class Position:
    """Where training stands: `step` updates of the stage of `round` are done.

    Round -1 is the image-level classifier that gives the first CAMs.
    """

    round: int
    step: int

    @property
    def stage(self) -> str:
        """Name of the stage on disk: "classifier" or "round-NN"."""
        return "classifier" if self.round < 0 else f"round-{self.round:02d}"


CLASSIFIER_ROUND = -1
