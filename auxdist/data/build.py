"""From a list of images to a folder of image shards: in parallel, resumable, whole or not at all.

In `.build/` of the folder is a note for every finished shard; the same command goes on from there.
`index.json` is written last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from auxdist.data.buildfolder import (
    NOTES,
    Cut,
    claim,
    keep_cut,
    kept_cut,
    only_build,
    read_object,
)
from auxdist.data.index import INDEX_NAME, Index, Shard, load_index, table_path, write_index
from auxdist.data.pool import Tick, run_tasks
from auxdist.data.recipe import Item, Recipe, SaliencyMaker, encode_sample
from auxdist.data.shardfile import SampleFacts, check_key, write_shard
from auxdist.errors import DataError
from auxdist.records import MAX_CLASSES
from auxdist.runfolder import write_json

FORMAT = 1
"""Raised whenever equal options would give other shards than before."""

QUARANTINE_NAME = "quarantine.json"
_NO_FILE = "none"
_SLOW_IMPORTS = ("webdataset.writer",)


@dataclass(frozen=True)
class BuildOptions:
    """Where and how to build. A shard ends at `samples_per_shard`, or, if 0, at `shard_mb`."""

    out: Path
    samples_per_shard: int = 0
    shard_mb: float = 64
    processes: int = 1
    skip_bad: bool = False


@dataclass(frozen=True)
class Refused:
    """A sample that was left out, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What a build did: shards written now and found finished, samples left out."""

    index: Index
    num_written: int
    num_kept: int
    refused: tuple[Refused, ...]


@dataclass(frozen=True)
class _Part:
    """The work of one shard, and all that a worker needs for it."""

    tar: Path
    items: tuple[Item, ...]
    num_classes: int
    palette: tuple[tuple[int, int, int], ...]
    saliency: SaliencyMaker | None
    skip_bad: bool
    fingerprint: str
    """Of the options and the keys."""
    stamps: tuple[str, ...]
    """Of each file that the samples are made from, see `_stamp`."""


@dataclass(frozen=True)
class _Finished:
    """A part that is on disk. `shard` is None where every sample of it was refused."""

    name: str
    shard: Shard | None
    refused: tuple[Refused, ...]


def build(recipe: Recipe, options: BuildOptions, progress: Callable[[int], object]) -> Report:
    """Build the shards of a recipe, or what is missing of them, and then the index.

    `progress` is told how many samples were done since it was last told.

    Raises:
        DataError: a bad sample (unless skip_bad), other options than the folder's, a full disk,
            another build in the same folder, a killed worker.
        Stopped: asked to stop.
    """
    _check_names(recipe)
    items, refused = _usable(recipe.items, options.skip_bad)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        with only_build(options.out):
            return _build(recipe, options, items, refused, progress)
    except OSError as error:
        where = error.filename or options.out
        raise DataError(
            f"{where}: cannot be written ({error.strerror or error}); what is finished is kept, "
            "and the same command goes on once the cause is mended."
        ) from error


def _build(
    recipe: Recipe,
    options: BuildOptions,
    items: list[Item],
    refused: list[Refused],
    progress: Callable[[int], object],
) -> Report:
    fingerprint = claim(options.out, _description(recipe, options, items))
    absent = {item.key for item in items if not item.num_bytes}
    before = kept_cut(options.out, fingerprint)
    # Where shards end by the size of files, they still end there once files are gone; but not once
    # some are there that were not, and had no size.
    cut = before if before and absent >= before.absent else Cut(_sizes(options, items), absent)
    parts = list(_cut(recipe, options, items, cut.sizes, fingerprint))
    finished = {part.tar.name: done for part in parts if (done := _find_finished(part))}
    num_kept = len(finished)
    missing = [part for part in parts if part.tar.name not in finished]
    if missing:
        _require_originals(options.out, missing, absent)
        (options.out / INDEX_NAME).unlink(missing_ok=True)
    progress(sum(len(part.items) for part in parts) - sum(len(part.items) for part in missing))
    for done in run_tasks(_make_part, missing, options.processes, progress, _SLOW_IMPORTS):
        finished[done.name] = done
    in_order = [finished[part.tar.name] for part in parts]
    refused = refused + [one for done in in_order for one in done.refused]
    if cut is not before:
        keep_cut(options.out, fingerprint, cut)
    index = _publish(recipe, options.out, in_order, refused)
    return Report(index, len(missing), num_kept, tuple(refused))


def _require_originals(out: Path, missing: list[_Part], absent: set[str]) -> None:
    """Refuse to make a shard anew without files that it was made of."""
    wanted = [item.key for part in missing for item in part.items if item.key in absent]
    if not wanted:
        return
    tables = [read_object(table_path(tar)) for tar in out.glob("*.tar")]
    held = {row["key"] for table in tables for row in table.get("samples", ())}
    if lost := [key for key in wanted if key in held]:
        raise DataError(
            f"{out}: shards must be made anew, but the files of {len(lost)} samples that they were "
            f"made of are gone, of {lost[0]} the first; bring them back, or name another folder."
        )


def _check_names(recipe: Recipe) -> None:
    """Refuse classes and a split that cannot be named so."""
    names = recipe.classes
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"class {twice[0]!r} stands twice in the list of classes; name each once.")
    if len(names) > MAX_CLASSES:
        raise DataError(
            f"{len(names)} classes: labels are 8-bit with 0 background and 255 ignore; at most "
            f"{MAX_CLASSES} fit."
        )
    if not recipe.split or Path(recipe.split).name != recipe.split:
        raise DataError(
            f"split {recipe.split!r}: is part of file names; give --split a name without a slash."
        )


def _usable(items: Sequence[Item], skip_bad: bool) -> tuple[list[Item], list[Refused]]:
    """Items with legal keys, each once; the others are an error unless bad ones are skipped."""
    good: dict[str, Item] = {}
    refused = []
    for item in items:
        try:
            check_key(item.key)
            if item.key in good:
                raise DataError(
                    f"sample key {item.key!r} comes twice in the list; name every image once, and "
                    "rename files whose paths differ only in suffix or special characters."
                )
            good[item.key] = item
        except DataError as error:
            if not skip_bad:
                raise
            refused.append(Refused(item.key, str(error)))
    if not good:
        raise DataError("There is no image to build shards from; check the list and the folder.")
    return list(good.values()), refused


def _description(recipe: Recipe, options: BuildOptions, items: list[Item]) -> dict[str, Any]:
    """Everything that decides the bytes of the shards but the samples' own files, by name."""
    keys = hashlib.sha256("\n".join(item.key for item in items).encode()).hexdigest()
    return {
        "format": FORMAT,
        "split": recipe.split,
        "classes": list(recipe.classes),
        "ground_truth": recipe.ground_truth,
        "saliency": _saliency_name(recipe),
        "saliency_maker": repr(recipe.saliency),
        "samples_per_shard": options.samples_per_shard,
        "shard_mb": options.shard_mb,
        "keys_sha256": keys,
        **recipe.origin,
    }


def _saliency_name(recipe: Recipe) -> str:
    return "none" if recipe.saliency is None else recipe.saliency.name


def _cut(
    recipe: Recipe, options: BuildOptions, items: list[Item], sizes: list[int], fingerprint: str
) -> Iterator[_Part]:
    """Split the items into the parts that become shards, in order."""

    def part(number: int, members: list[Item]) -> _Part:
        keys = "\n".join(item.key for item in members)
        own = hashlib.sha256(f"{fingerprint}\n{keys}".encode()).hexdigest()
        return _Part(
            tar=options.out / f"{recipe.split}-{number:06d}.tar",
            items=tuple(members),
            num_classes=len(recipe.classes),
            palette=recipe.palette,
            saliency=recipe.saliency,
            skip_bad=options.skip_bad,
            fingerprint=own,
            stamps=tuple(_stamp(path) for item in members for path in _files(item, recipe)),
        )

    rest = iter(items)
    for number, size in enumerate(sizes):
        yield part(number, list(islice(rest, size)))


def _sizes(options: BuildOptions, items: list[Item]) -> list[int]:
    """How many samples each part has, by the files as they are now."""
    sizes, held, num_bytes = [], 0, 0.0
    for item in items:
        held += 1
        num_bytes += item.num_bytes if not options.samples_per_shard else 0
        if held == options.samples_per_shard or num_bytes >= options.shard_mb * 1e6:
            sizes.append(held)
            held, num_bytes = 0, 0.0
    return sizes + [held] * bool(held)


def _files(item: Item, recipe: Recipe) -> tuple[Path, ...]:
    """Every file that a sample is made from."""
    return (*item.files, *(recipe.saliency.files(item.key) if recipe.saliency else ()))


def _stamp(path: Path) -> str:
    """Size and time of a file."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return _NO_FILE
    return f"{found.st_size}/{found.st_mtime_ns}"


def _is_changed(before: Sequence[str], after: Sequence[str]) -> bool:
    """True where a file was mended or replaced; one that is gone leaves what was made of it."""
    return len(before) != len(after) or any(
        new not in (old, _NO_FILE) for old, new in zip(before, after, strict=True)
    )


def _note_path(part: _Part) -> Path:
    return part.tar.parent / NOTES / f"{part.tar.stem}.json"


def _find_finished(part: _Part) -> _Finished | None:
    """What an earlier build left of this part, if it is whole and of the same options.

    A shard that lacks bad samples counts only while bad samples are skipped.
    """
    note = read_object(_note_path(part))
    if note.get("fingerprint") != part.fingerprint or (note["refused"] and not part.skip_bad):
        return None
    if _is_changed(note.get("stamps", part.stamps), part.stamps):  # older notes have none
        return None
    refused = tuple(Refused(**one) for one in note["refused"])
    if note["shard"] is None:
        return _Finished(part.tar.name, None, refused)
    shard = Shard(**note["shard"])
    try:
        table = table_path(part.tar).read_bytes()
        whole = part.tar.stat().st_size == shard.bytes
    except FileNotFoundError:
        return None
    if not whole or hashlib.sha256(table).hexdigest() != shard.table_sha256:
        return None
    return _Finished(part.tar.name, shard, refused)


def _make_part(part: _Part, tick: Tick) -> _Finished:
    """Write one shard and its note (this runs in a worker)."""
    refused: list[Refused] = []
    samples = _samples(part, refused, tick)
    first = next(samples, None)
    shard = None if first is None else write_shard(part.tar, chain([first], samples))
    note = {
        "fingerprint": part.fingerprint,
        "stamps": part.stamps,
        "shard": shard and asdict(shard),
        "refused": [asdict(one) for one in refused],
    }
    write_json(_note_path(part), note)
    return _Finished(part.tar.name, shard, tuple(refused))


def _samples(
    part: _Part, refused: list[Refused], tick: Tick
) -> Iterator[tuple[str, Mapping[str, bytes], SampleFacts]]:
    for item in part.items:
        tick()
        try:
            yield encode_sample(item, part.num_classes, part.palette, part.saliency)
        except DataError as error:
            if not part.skip_bad:
                raise
            refused.append(Refused(item.key, str(error)))


def _publish(recipe: Recipe, out: Path, finished: list[_Finished], refused: list[Refused]) -> Index:
    """Write the quarantine list, if there is cause for one, and then the index."""
    shards = tuple(done.shard for done in finished if done.shard is not None)
    if refused:
        write_json(out / QUARANTINE_NAME, {"samples": [asdict(one) for one in refused]})
    else:
        (out / QUARANTINE_NAME).unlink(missing_ok=True)
    if not shards:
        raise DataError(
            f"{out}: every image was bad; see {out / QUARANTINE_NAME} for what is wrong with each."
        )
    index = Index(
        root=out,
        split=recipe.split,
        classes=recipe.classes,
        palette=recipe.palette,
        saliency=_saliency_name(recipe),
        ground_truth=recipe.ground_truth,
        shards=shards,
        sha256="",
    )
    write_index(index)
    _remove_strays(index)
    return load_index(out)


def _remove_strays(index: Index) -> None:
    """Remove shards of an earlier, finer cut, which the index does not name."""
    named = {shard.file for shard in index.shards}
    for tar in index.root.glob(f"{index.split}-[0-9][0-9][0-9][0-9][0-9][0-9].tar"):
        if tar.name not in named:
            tar.unlink()
            table_path(tar).unlink(missing_ok=True)
