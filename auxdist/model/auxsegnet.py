"""AuxSegNet (ICCV 2021) and what AuxSegNet+ adds to it (method.md 2.2, 2.3 and 4).

What AffinityConfig adds is off in the ICCV network; a switch that is off leaves no trace: no
parameter, no random number, no operation. Parameters are called as in published checkpoints, which
is why the layers of both branches are attributes of the network itself.

Shape legend: B samples, C foreground classes, N = h w positions, D branch channels, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auxdist.config import AffinityConfig, BranchesConfig
from auxdist.errors import ConfigError
from auxdist.model.backbone import Backbone
from auxdist.model.dropout import KeyedDropout2d
from auxdist.ops.affinity import (
    Affinity,
    CrossTaskAffinity,
    OwnAffinity,
    TaskAffinity,
    Unrefined,
    widen,
)
from auxdist.ops.affinity_rows import Keys, Mixer
from auxdist.records import Outputs
from auxdist.validation import contradictions


@dataclass(frozen=True)
class TaskOutputs:
    """What one branch computes: its logits (B, K, h, w), A_t, and u_t (B, N), where they are on."""

    logits: Tensor
    affinity: TaskAffinity | None
    unary: Tensor | None


class AuxSegNet(nn.Module):
    """Classification, saliency and segmentation on one backbone, tied by affinities.

    Args:
        backbone: see backbone.py
        num_classes: C
        branch_channels: D
        affinity: what AuxSegNet+ adds, and what of the affinities an ablation leaves out
        branches: the auxiliary tasks

    Raises:
        ConfigError: switches that contradict one another.
    """

    backbone: Backbone
    mean: Tensor
    std: Tensor
    gamma_seg: nn.Parameter
    gamma_sal: nn.Parameter

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        branch_channels: int = 128,
        affinity: AffinityConfig = AffinityConfig(),  # noqa: B008  (frozen)
        branches: BranchesConfig = BranchesConfig(),  # noqa: B008
    ) -> None:
        super().__init__()
        if problems := list(contradictions(affinity, branches)):
            raise ConfigError(problems)
        self.affinity = affinity
        self.branches = branches
        self.backbone = backbone
        self.cls_dropout = KeyedDropout2d(0.5, "cls_dropout")
        self.fc8 = nn.Conv2d(backbone.out_channels, num_classes, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)
        self.tasks = ("seg", "sal") if branches.saliency else ("seg",)
        for task, outputs in zip(self.tasks, (num_classes + 1, 1), strict=False):
            self._add_branch(task, branch_channels, outputs)
        if affinity.predictions == "cross":
            self.cross_att = _mixer()
        if affinity.unary:
            self._add_unary(branch_channels)
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1), persistent=False)

    @property
    def refines(self) -> bool:
        """Whether predictions are refined at all."""
        return self.affinity.predictions != "off"

    def prepare(self, image: Tensor, extent: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) uint8 -> normalised; 0 outside `extent` (B, 2), the height and width."""
        normal = (image.to(self.mean.dtype) / 255 - self.mean) / self.std
        if extent is None:
            return normal
        rows = torch.arange(image.shape[2], device=image.device) < extent[:, :1]  # (B, H)
        columns = torch.arange(image.shape[3], device=image.device) < extent[:, 1:]  # (B, W)
        return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], normal, 0)

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Outputs:
        """(B, 3, H, W) normalised image, (B,) int64 dropout keys -> Outputs."""
        features = self.backbone(image, noise)
        classes, cam = self._classify(features, noise)
        found = [self._branch(task, features) for task in self.tasks]
        logits = [task.logits for task in found]
        affinity, refined = self._refine(found)
        has_saliency = self.branches.saliency
        return Outputs(
            classes=classes,
            cam=cam,
            saliency=logits[1] if has_saliency else None,
            saliency_refined=refined[1] if has_saliency else None,
            segmentation=logits[0],
            segmentation_refined=refined[0],
            affinity=affinity,
        )

    def classify(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Only the classifier: logits (B, C) and raw CAMs (B, C, h, w)."""
        return self._classify(self.backbone(image, noise), noise)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters: "backbone", with what mixes the tasks, and the faster "heads"."""
        slow = ("cross_att", "cross_unary", "gamma")
        fixed = ("backbone.",) if self.branches.classification else ("backbone.", "fc8.")
        own = [(n, p) for n, p in self.named_parameters() if not n.startswith(fixed)]
        return {
            "backbone": [
                *self.backbone.trainable_parameters(),
                *(p for n, p in own if n.startswith(slow)),
            ],
            "heads": [p for n, p in own if not n.startswith(slow)],
        }

    def gates(self) -> dict[str, float]:
        """gamma_t by task: how much of the unary prediction was learned to be added."""
        if self.affinity.unary_pred != "gated":
            return {}
        return {task: float(self._gamma(task)) for task in self.tasks}

    def _gamma(self, task: str) -> nn.Parameter:
        return self.get_parameter(f"gamma_{task}")

    def _add_branch(self, task: str, channels: int, outputs: int) -> None:
        inputs = self.fc8.in_channels
        convs = (
            nn.Conv2d(inputs, channels, 3, padding=6, dilation=6),
            nn.Conv2d(channels, channels, 3, padding=12, dilation=12),
            nn.Conv2d(channels, channels, 3, padding=18, dilation=18),
            nn.Conv2d(channels, outputs, 1, bias=False),
        )
        for number, conv in enumerate(convs, 1):
            nn.init.xavier_uniform_(conv.weight)
            self.add_module(f"{task}_conv{number}", conv)
        if self.affinity.features or self.refines:
            self.add_module(f"{task}_att", Projections(channels, self.affinity.whiten))
        if self.affinity.features:
            self.add_module(f"{task}_g", nn.Conv2d(channels, channels, 1))
            self.add_module(f"{task}_W", nn.Conv2d(channels, channels, 1))

    def _add_unary(self, channels: int) -> None:
        wanted = self.affinity.unary_pred
        for task in self.tasks:
            unary = nn.Conv2d(channels, 1, 1)
            nn.init.normal_(unary.weight, std=0.01)
            nn.init.zeros_(unary.bias)  # type: ignore[arg-type]
            self.add_module(f"{task}_unary", unary)
        if wanted != "off" and self.affinity.predictions == "cross":
            self.cross_unary = _mixer()
        if wanted == "gated":
            for task in self.tasks:
                self.register_parameter(f"gamma_{task}", nn.Parameter(torch.zeros(1)))

    def _classify(self, features: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        pooled = self.cls_dropout(features, noise).mean((2, 3), keepdim=True)
        cam = F.conv2d(features, self.fc8.weight)
        return widen(self.fc8(pooled)[:, :, 0, 0]), widen(cam)

    def _branch(self, task: str, features: Tensor) -> TaskOutputs:
        def layer(name: str) -> nn.Module:
            return self.get_submodule(f"{task}_{name}")

        hidden = F.relu(layer("conv2")(F.relu(layer("conv1")(features))))  # (B, D, h, w)
        affinity, unary = None, None
        if self.affinity.features or self.refines:
            affinity = TaskAffinity(layer("att")(hidden), self.affinity.row_block)
        if self.affinity.unary:
            unary = _spatial_softmax(layer("unary"), hidden)
        if self.affinity.features:
            assert affinity is not None
            values = layer("g")(hidden).flatten(2).transpose(1, 2)  # (B, N, D)
            context = affinity.apply(values)
            if unary is not None:
                context = context + _pooled(unary, values)  # the same for all positions
            augmented = context.transpose(1, 2).reshape(hidden.shape).to(hidden.dtype)
            hidden = hidden + layer("W")(augmented)
        hidden = F.relu(layer("conv3")(hidden))
        return TaskOutputs(widen(layer("conv4")(hidden)), affinity, unary)

    def _refine(self, found: list[TaskOutputs]) -> tuple[Affinity, list[Tensor]]:
        """What refines, and the refined logits of each task."""
        logits = [task.logits for task in found]
        if not self.refines:
            return Unrefined(), logits
        affinity: Affinity
        if self.affinity.predictions == "own":
            own = [OwnAffinity(_pairwise(task)) for task in found]
            affinity = own[0]
            refined = [each.apply(maps) for each, maps in zip(own, logits, strict=True)]
        else:
            affinity = self._cross_affinity(*found)
            both = affinity.apply(torch.cat(logits, 1))  # in one go: rows are made once
            refined = list(both.split([maps.shape[1] for maps in logits], 1))
        if self.affinity.unary_pred != "off":
            refined = [
                maps + prior for maps, prior in zip(refined, self._priors(found), strict=True)
            ]
        return affinity, refined

    def _cross_affinity(self, seg: TaskOutputs, sal: TaskOutputs) -> CrossTaskAffinity:
        mixer = Mixer(*self.cross_att.parameters())
        tasks = _pairwise(seg), _pairwise(sal)
        return CrossTaskAffinity(*tasks, mixer, self.affinity.renormalise_rows)

    def _priors(self, found: list[TaskOutputs]) -> Iterator[Tensor]:
        """gamma_t u^T P_t for each task, (B, K, 1, 1); u is u_CT, or the task's own."""
        size = found[0].logits.shape[2:]
        unaries = [_unary(task) for task in found]  # (B, N) each
        if self.affinity.predictions == "cross":
            unaries = [self._cross_unary(torch.stack(unaries, 1), size)] * len(found)
        for name, task, unary in zip(self.tasks, found, unaries, strict=True):
            prior = _pooled(unary, task.logits.flatten(2).transpose(1, 2))  # (B, 1, K)
            if self.affinity.unary_pred == "gated":
                prior = prior * self._gamma(name)
            yield prior.transpose(1, 2)[..., None]

    def _cross_unary(self, pair: Tensor, size: torch.Size) -> Tensor:
        """u_CT = v_0 u_seg + v_1 u_sal: (B, 2, N) -> (B, N)."""
        with torch.autocast(pair.device.type, enabled=False):
            image = (pair * pair.shape[2]).unflatten(2, size)  # its mean is 1
            weights = self.cross_unary(image).softmax(1).flatten(2)
        return (weights * pair).sum(1)


class Projections(nn.Module):
    """Queries and keys of a pairwise affinity, in fp32 at least.

    `whiten` subtracts their means over positions: else the product hides a query-independent term.
    """

    def __init__(self, channels: int, whiten: bool) -> None:
        super().__init__()
        self.theta = nn.Conv2d(channels, channels, 1)
        self.phi = nn.Conv2d(channels, channels, 1)
        self.whiten = whiten

    def forward(self, features: Tensor) -> Keys:
        """(B, D, h, w) -> query and key, both (B, N, D)."""
        tokens = widen(features).flatten(2).transpose(1, 2)
        with torch.autocast(features.device.type, enabled=False):
            return Keys(self._project(self.theta, tokens), self._project(self.phi, tokens))

    def _project(self, conv: nn.Conv2d, tokens: Tensor) -> Tensor:
        # A matrix product: cuDNN would run the equal convolution in TF32 unless told not to.
        assert conv.bias is not None
        projected = F.linear(tokens, widen(conv.weight).flatten(1), widen(conv.bias))
        return projected - projected.mean(1, keepdim=True) if self.whiten else projected


def _mixer() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(2, 2, 1))


def _spatial_softmax(unary: nn.Module, features: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, N), sums to 1 over the positions; in fp32 at least."""
    with torch.autocast(features.device.type, enabled=False):
        return unary(widen(features)).flatten(1).softmax(-1)


def _pooled(unary: Tensor, values: Tensor) -> Tensor:
    """u^T values: (B, N), (B, N, K) -> (B, 1, K), in fp32 at least."""
    with torch.autocast(values.device.type, enabled=False):
        return unary[:, None] @ widen(values)


def _pairwise(task: TaskOutputs) -> TaskAffinity:
    assert task.affinity is not None
    return task.affinity


def _unary(task: TaskOutputs) -> Tensor:
    assert task.unary is not None
    return task.unary
