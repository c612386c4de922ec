"""Weights from files into a network: our own, PSA's classifier and published AuxSegNets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from auxdist.errors import CheckpointError

_BACKBONE = re.compile(r"(conv1a|b[2-7](_\d)?|bn7)\.")
CLASSIFIER = ("backbone.", "fc8.")
"""What a classifier, like PSA's, has of a network."""
_DEAD = re.compile(r"(seg|sal)_att\.(g|W_z)\.|.*\.num_batches_tracked$")


@dataclass(frozen=True)
class WeightReport:
    """Names of tensors that were `loaded`, that the file lacks, and that the network lacks."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file, or from a .pth file that holds nothing else.

    Raises:
        CheckpointError: no such file, another kind of file, damaged, or not a plain state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file; correct the path or fetch the file.")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix in (".pth", ".pt"):
        return _load_pth(path)
    raise CheckpointError(
        f"{path}: weights end in .safetensors, .pth or .pt, this one in "
        f"{path.suffix or 'nothing'}; rename or convert the file."
    )


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> ours: the backbone's get their prefix, weights never used are dropped.

    Takes PSA's classifier (conv1a, b2 .. bn7, fc8) and published AuxSegNets, also as saved from
    DataParallel ("module."). Our own names stay as they are.
    """
    renamed = {}
    for name, tensor in state.items():
        short = name.removeprefix("module.")
        if not _DEAD.match(short):
            renamed[f"backbone.{short}" if _BACKBONE.match(short) else short] = tensor
    return renamed


def apply_weights(
    net: nn.Module,
    state: Mapping[str, Tensor],
    required: tuple[str, ...] = CLASSIFIER,
    where: str = "weights",
) -> WeightReport:
    """Copy `state` into `net`; nothing is changed when it does not fit.

    Args:
        required: beginnings of names that `state` must have if `net` has them; "" is all
        where: what errors call `state`, its file for instance

    Raises:
        CheckpointError: a tensor of another shape, or a required one missing.
    """
    own = net.state_dict()
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            raise CheckpointError(
                f"{where}: tensor {name} has shape {tuple(state[name].shape)}, but "
                f"{tuple(own[name].shape)} in the network; use weights of the same backbone, "
                "channels and number of classes."
            )
    missing = sorted(own.keys() - state.keys())
    lacking = [name for name in missing if name.startswith(required)]
    if lacking:
        raise CheckpointError(
            f"{where}: {len(lacking)} of the network's {len(own)} tensors are missing, first "
            f"{lacking[0]}; use weights of the same backbone and method."
        )
    loaded = sorted(own.keys() & state.keys())
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(state[name])
    return WeightReport(tuple(loaded), tuple(missing), tuple(sorted(state.keys() - own.keys())))


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged weight file ({error}); fetch it again.") from error


def _load_pth(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes fail anywhere, in many ways
        raise CheckpointError(
            f"{path}: damaged, or holds more than tensors, which is never unpickled "
            f"({_first_line(error)}); save its state_dict() again as .safetensors."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"{path}: expected one dictionary of tensors by name, found {type(state).__name__} "
            "of other things; save the model's state_dict() itself."
        )
    return dict(state)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
