"""Checkpoints: safetensors and a manifest, written under a temporary name, renamed when whole."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from auxdist import __version__
from auxdist.errors import CheckpointError, DataError
from auxdist.labels.manifest import MANIFEST_NAME as LABELS_MANIFEST
from auxdist.records import Position
from auxdist.runfolder import RunFolder, file_sha256, sync_file, sync_folder, write_json
from auxdist.train.engine import State

SCHEMA = 1
WEIGHTS = "weights.safetensors"
MOMENTUM = "momentum.safetensors"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk, as its manifest describes it."""

    folder: Path
    position: Position
    total_steps: int
    quarantined: int
    """Samples of the current epoch that could not be read so far."""
    weights_sha256: str
    images_sha256: str
    """Of the index of the images that the stage learns from; empty where that is not known."""

    @property
    def is_final(self) -> bool:
        """True where the stage ended with this checkpoint."""
        return self.position.step == self.total_steps

    def weights(self) -> dict[str, Tensor]:
        """The network's weights.

        Raises:
            CheckpointError: the file is damaged.
        """
        return _load(self.folder, WEIGHTS)

    def momentum(self) -> dict[str, Tensor]:
        """The optimiser's momentum buffers, by parameter.

        Raises:
            CheckpointError: the file is damaged.
        """
        return _load(self.folder, MOMENTUM)


def save_checkpoint(
    run: RunFolder,
    position: Position,
    total_steps: int,
    quarantined: int,
    state: State,
    images_sha256: str = "",
) -> Checkpoint:
    """Write a checkpoint; it appears under its name whole or not at all."""
    folder = run.checkpoint(position.stage, position.step)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        for name, tensors in ((WEIGHTS, state.weights), (MOMENTUM, state.momentum)):
            # save_file hides the number of an error, and its files are for the owner alone.
            (temporary / name).write_bytes(save(tensors))
            sync_file(temporary / name)
        files = {name: file_sha256(temporary / name) for name in (WEIGHTS, MOMENTUM)}
        manifest = {
            "schema": SCHEMA,
            "round": position.round,
            "step": position.step,
            "total_steps": total_steps,
            "quarantined": quarantined,
            "images_sha256": images_sha256,
            "code_version": __version__,
            "sha256": files,
        }
        write_json(temporary / MANIFEST, manifest)
        if folder.exists():  # a whole one is not written again: this one is damaged
            shutil.rmtree(folder)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error}). Free space or mend the file system, then give "
            "the same command again; earlier checkpoints are untouched."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Checkpoint(folder, position, total_steps, quarantined, files[WEIGHTS], images_sha256)


def latest_checkpoint(run: RunFolder, round: int) -> Checkpoint | None:
    """The newest whole checkpoint of a round's stage; damaged ones are passed over.

    Raises:
        CheckpointError: there are checkpoints, but every one is damaged.
        DataError: the file system does not let one be read.
    """
    folders = reversed(_by_step(run.checkpoints(Position(round, 0).stage)))
    problems = []
    for folder in folders:
        try:
            return open_checkpoint(folder)
        except CheckpointError as problem:
            problems.append(str(problem))
    if problems:
        raise CheckpointError("\n".join([*problems, _way_out(run, round)]))
    return None


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's manifest and check its files against it.

    Raises:
        CheckpointError: a file is missing, or its bytes are not those of the manifest.
        DataError: the file system does not let it be read, which says nothing of what is there.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, expected in manifest["sha256"].items():
            if file_sha256(folder / name) != expected:
                raise CheckpointError(
                    f"{folder / name}: is damaged, its bytes are not those of the manifest."
                )
        return Checkpoint(
            folder,
            Position(manifest["round"], manifest["step"]),
            manifest["total_steps"],
            manifest["quarantined"],
            manifest["sha256"][WEIGHTS],
            manifest.get("images_sha256", ""),
        )
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: is not a whole checkpoint ({error!r}).") from error
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be read ({error.strerror}); mend the file system, then give the "
            "same command again."
        ) from error


def _way_out(run: RunFolder, round: int) -> str:
    """What to do where nothing of a stage is left. Later labels and networks came of it."""
    if (run.labels(round) / LABELS_MANIFEST).exists():
        cure = f"`auxdist labels rollback {run.root} {round}` sets the stage aside"
    else:
        cure = f"Delete {run.checkpoints(Position(round, 0).stage)}"
        cure += f" and {run.complete}" * run.complete.exists()
    return (
        f"{cure}, and what came of it; the command that started the run then trains this stage "
        "anew."
    )


def prune_checkpoints(run: RunFolder, saved: Position, keep: int) -> None:
    """Delete all but `keep` checkpoints up to the `saved` one, and what dead writers left.

    A later step stays: it was damaged, and is written anew in its turn, or a newer start wrote it.
    """
    parent = run.checkpoints(saved.stage)
    folders = _by_step(parent)
    up_to_saved = folders[: folders.index(run.checkpoint(saved.stage, saved.step)) + 1]
    for folder in [*up_to_saved[:-keep], *parent.glob(".step-*.tmp")]:
        shutil.rmtree(folder, ignore_errors=True)


def _by_step(parent: Path) -> list[Path]:
    """The checkpoints of a stage, the oldest first."""
    return sorted(parent.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def _load(folder: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / name}: cannot be read ({error}).") from error
