"""An image too large for memory is the image's fault, and is said with its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from auxdist.errors import DataError

Found = TypeVar("Found")


def within_memory(look: Callable[[], Found], image: str, advice: str) -> Found:
    """What `look` finds in one image.

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
        raise DataError(f"{image}: does not fit into memory; {advice}.") from error
