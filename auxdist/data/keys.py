"""Random numbers as pure functions of what they are for.

Only raw 64-bit output and `random()` of PCG64 are used: their streams are fixed for good, those of
numpy's `permutation` and `integers` may change with its version.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, round: int, epoch: int, *names: str | int) -> np.random.Generator:
    """A random stream of its own for every (seed, round, epoch, names)."""
    digest = _digest(seed, round, epoch, *names, size=16)
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def noise_key(seed: int, round: int, epoch: int, key: str) -> int:
    """63-bit number that the dropout masks of a sample are a function of."""
    return int.from_bytes(_digest(seed, round, epoch, "noise", key, size=8), "little") >> 1


def permutation(source: np.random.Generator, length: int) -> np.ndarray:
    """(length,) int64 random order of 0..length-1."""
    return np.argsort(source.bit_generator.random_raw(length), kind="stable")


def _digest(*words: str | int, size: int) -> bytes:
    # Unit separators and the type keep ("a", "b") apart from ("ab",) and 1 from "1".
    text = "\x1f".join(f"{type(word).__name__}:{word}" for word in words)
    return hashlib.blake2b(text.encode(), digest_size=size).digest()
