"""An image too large for memory is the image's fault, and is said with its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from auxdist.errors import DataError

Found = TypeVar("Found")


def within_memory(look: Callable[[], Found], name: str, size: Sequence[int], advice: str) -> Found:
    """What `look` finds in the image of this name and size (H, W, ...).

    Raises:
        DataError: the memory of the GPU, or NumPy's, does not hold it, even when asked again after
            all that is kept for later was given back.
    """
    try:
        return look()
    except (MemoryError, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
    try:
        return look()
    except (MemoryError, torch.OutOfMemoryError) as error:
        pixels = f"{size[1]}x{size[0]} pixels"
        raise DataError(f"{name} ({pixels}): does not fit into memory; {advice}.") from error
