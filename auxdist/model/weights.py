"""Weights from files into a network: our own, and published ones under their authors' names."""

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

BACKBONE = ("backbone.",)
"""What weights to start from have of a network."""
CLASSIFIER = ("backbone.", "fc8.")
"""What a classifier, like PSA's, has of a network."""
_PUBLISHED = {
    # PSA's classifier and AuxSegNet; the heads of AuxSegNet are called so here too
    r"(conv1a|b[2-7](?:_\d)?|bn7)": r"\1",
    # EfficientNet-Lite, as the PyTorch ports of EfficientNet call it
    r"_conv_stem": "stem.conv",
    r"_bn0": "stem.norm",
    r"_blocks\.(\d+)\._expand_conv": r"blocks.\1.expand.conv",
    r"_blocks\.(\d+)\._bn0": r"blocks.\1.expand.norm",
    r"_blocks\.(\d+)\._depthwise_conv": r"blocks.\1.depthwise.conv",
    r"_blocks\.(\d+)\._bn1": r"blocks.\1.depthwise.norm",
    r"_blocks\.(\d+)\._project_conv": r"blocks.\1.project.conv",
    r"_blocks\.(\d+)\._bn2": r"blocks.\1.project.norm",
}
"""Beginnings of published names of a backbone's layers, and ours after "backbone."."""
_DEAD = re.compile(
    r"(seg|sal)_att\.(g|W_z)\."  # published AuxSegNets carry these and never use them
    r"|_(conv_head|bn1|fc)\."  # the ImageNet classifier
    r"|.*\.num_batches_tracked$"
)


@dataclass(frozen=True)
class WeightReport:
    """Names of tensors that both have, that the file lacks, and that the network lacks."""

    matched: tuple[str, ...]
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

    Takes PSA's classifier, published AuxSegNets and EfficientNet-Lites, also as saved from
    DataParallel ("module."). Our own names stay as they are.
    """
    short = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {_own_name(name): tensor for name, tensor in short.items() if not _DEAD.match(name)}


def compare_weights(
    net: nn.Module,
    state: Mapping[str, Tensor],
    required: tuple[str, ...] = CLASSIFIER,
    where: str = "weights",
) -> WeightReport:
    """Which tensors of `net`, by name and shape alone, `state` has.

    Args:
        required: beginnings of names that `state` must have if `net` has them; "" is all
        where: what errors call `state`, its file for instance

    Raises:
        CheckpointError: a tensor of another shape, or a required one missing.
    """
    own = {name: tensor for name, tensor in net.state_dict().items() if not _DEAD.match(name)}
    matched = [name for name in own if name in state]
    for name in matched:
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
    unexpected = sorted(state.keys() - own.keys())
    return WeightReport(tuple(sorted(matched)), tuple(missing), tuple(unexpected))


def apply_weights(
    net: nn.Module,
    state: Mapping[str, Tensor],
    required: tuple[str, ...] = CLASSIFIER,
    where: str = "weights",
) -> WeightReport:
    """Copy `state` into `net`, after `compare_weights`; nothing is changed when it does not fit.

    Raises:
        CheckpointError: a tensor of another shape, or a required one missing.
    """
    report = compare_weights(net, state, required, where)
    own = net.state_dict()
    with torch.no_grad():
        for name in report.matched:
            own[name].copy_(state[name])
    return report


def _own_name(name: str) -> str:
    for published, ours in _PUBLISHED.items():
        if match := re.match(rf"{published}\.", name):
            return f"backbone.{match.expand(ours)}.{name[match.end() :]}"
    return name


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged weight file ({error}); fetch it again.") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _load_pth(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _unreadable(path, error) from error
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


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    why = error.strerror or error
    return CheckpointError(f"{path}: cannot be read ({why}); mend its permissions.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
