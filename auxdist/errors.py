"""The exceptions that auxdist raises on purpose. Everything else is a bug."""

from __future__ import annotations

import errno
from pathlib import Path

PASSING = (
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ESHUTDOWN,
    errno.ENOTCONN,
    errno.EREMOTEIO,
)
"""Errors of a file system that a node has lost sight of."""


class AuxdistError(Exception):
    """Base of every error that a user can mend; its text says what, where, expected, do this."""


class ConfigError(AuxdistError):
    """A configuration that cannot be used. `problems` lists every fault found, not the first."""

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(AuxdistError):
    """Images, shards or labels that are missing, damaged or not what they claim to be."""


class Collapsed(DataError):
    """Refreshed labels that degenerated and are not adopted; those before stand."""


class PeerFailed(DataError):
    """Another rank met bad data, so this one stops too; that rank's own message says which."""


class CheckpointError(AuxdistError):
    """A checkpoint or weight file that is damaged or does not fit the network."""


class DiskFull(AuxdistError):
    """The file system took no more; what was finished before stands."""


class LaunchError(AuxdistError):
    """A job that could not be submitted or started."""


class NodeFault(LaunchError):
    """A node that cannot do its part now; another one, or the same one later, may."""


class Diverged(AuxdistError):
    """A loss or gradient is no longer finite; no such state is ever saved."""


class Stopped(AuxdistError):
    """The run was asked to stop, saved its state and left in order; the same command goes on."""


def unreadable(path: Path, error: OSError, advice: str) -> DataError | NodeFault:
    """What to raise where a file of data cannot be read: is it the file's fault, or the node's?"""
    kind = NodeFault if error.errno in PASSING else DataError
    return kind(f"{path}: cannot be read ({error.strerror}); {advice}.")
