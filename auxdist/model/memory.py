"""An image too large for memory is the image's fault, and is said with its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from auxdist.errors import DataError


@contextmanager
def within_memory(image: str, advice: str) -> Iterator[None]:
    """A block that looks at one image.

    Raises:
        DataError: the memory of the device, or of the process, does not hold it.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise DataError(f"{image}: does not fit into memory; {advice}.") from error
