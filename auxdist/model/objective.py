"""What a stage minimises: a network together with its losses, as one module for an engine."""

from __future__ import annotations

from torch import Tensor, nn

from auxdist.model.auxsegnet import AuxSegNet
from auxdist.model.losses import class_loss, saliency_loss, segmentation_loss
from auxdist.records import Batch, Losses, Normaliser


class ClassifierObjective(nn.Module):
    """The image-level classifier; trains the backbone and fc8 and freezes the rest of `net`."""

    def __init__(self, net: AuxSegNet) -> None:
        super().__init__()
        self.net = net
        _train_only(net, self.parameter_groups())

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters: "backbone" and "heads", which learn faster."""
        return {
            "backbone": self.net.backbone.trainable_parameters(),
            "heads": list(self.net.fc8.parameters()),
        }

    def forward(self, batch: Batch, normaliser: Normaliser) -> Losses:
        """The share of this rank's rows in the loss of the global batch."""
        image = self.net.prepare(batch.image, batch.extent)
        logits, _ = self.net.classify(image, batch.noise)
        return _total({"classes": class_loss(logits, batch, normaliser)})


class SegmentationObjective(nn.Module):
    """The five losses of method.md 2.4, all of weight 1; trains the whole network.

    A branch or a refinement that the network does not have has no loss.
    """

    def __init__(self, net: AuxSegNet) -> None:
        super().__init__()
        self.net = net
        _train_only(net, self.parameter_groups())

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters: "backbone" and "heads", which learn faster."""
        return self.net.parameter_groups()

    def forward(self, batch: Batch, normaliser: Normaliser) -> Losses:
        """The share of this rank's rows in the loss of the global batch."""
        out = self.net(self.net.prepare(batch.image, batch.extent), batch.noise)
        terms: dict[str, Tensor] = {}
        if self.net.branches.classification:
            terms["classes"] = class_loss(out.classes, batch, normaliser)
        for task, loss in (("saliency", saliency_loss), ("segmentation", segmentation_loss)):
            for name in (task, f"{task}_refined")[: 1 + self.net.refines]:
                if (logits := getattr(out, name)) is not None:
                    terms[name] = loss(logits, batch, normaliser)
        return _total(terms)


def _train_only(net: nn.Module, groups: dict[str, list[nn.Parameter]]) -> None:
    """Freeze all else: an engine for several ranks waits for the gradient of whatever is not."""
    net.requires_grad_(False)
    for parameters in groups.values():
        for parameter in parameters:
            parameter.requires_grad_(True)


def _total(terms: dict[str, Tensor]) -> Losses:
    parts = {name: term.detach() for name, term in terms.items()}
    return Losses(sum(terms.values(), start=next(iter(terms.values())).new_zeros(())), parts)
