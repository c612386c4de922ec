"""Memory that is refused, and memory to give back.

An image too large for memory is the image's fault, and is said with its name.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import cv2
import torch

from auxdist.errors import DataError

Found = TypeVar("Found")

_REFUSALS = (
    "DefaultCPUAllocator",
    "out of memory",  # CUDA's own allocations, NCCL's too
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # cuDNN got no memory for any
)
"""In the text of those for which torch has no type of its own."""


def within_memory(look: Callable[[], Found], name: str, size: Sequence[int], advice: str) -> Found:
    """What `look` finds in the image of this name and size (H, W, ...).

    Raises:
        DataError: memory does not hold it, even when asked again after all that is kept for later
            was given back.
    """
    try:
        return look()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    free_memory()  # only here: the error would hold on to what `look` had
    try:
        return look()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        pixels = f"{size[1]}x{size[0]} pixels"
        raise DataError(f"{name} ({pixels}): does not fit into memory; {advice}.") from error


def free_memory() -> None:
    """Give back what nothing refers to any more, also what refers to itself, as networks in DDP do.

    Python does that by itself only now and then, and does not see how large they are on a GPU.
    """
    gc.collect()
    torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was refused: that of a GPU, or by NumPy, OpenCV, or torch on a CPU."""
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.StsNoMem
    if isinstance(error, RuntimeError) and any(text in str(error) for text in _REFUSALS):
        return True
    return isinstance(error, MemoryError | torch.OutOfMemoryError)
