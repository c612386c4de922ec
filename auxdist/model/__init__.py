"""Backbones, the network, its losses and its weights. Knows no rank, no path in a run, no data."""

from auxdist.model.auxsegnet import AuxSegNet
from auxdist.model.builder import build, build_shapes

__all__ = ["AuxSegNet", "build", "build_shapes"]
