"""A build is parallel, resumable, and whole or not at all; bad samples are named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from build_script import content_of

from auxdist.data.build import BuildOptions, Report, build
from auxdist.data.drawn import drawn_recipe
from auxdist.data.estimate import PlainSaliency, ReadySaliency
from auxdist.data.index import Index
from auxdist.data.palette import voc_palette
from auxdist.data.photos import PhotoItem, file_bytes
from auxdist.data.recipe import Recipe
from auxdist.data.verify import verify
from auxdist.errors import DataError


def _demo(count: int = 12, seed: int = 0) -> Recipe:
    return drawn_recipe(seed, "train", count, 64, PlainSaliency())


def _build(recipe: Recipe, out: Path, **options: object) -> Report:
    how = replace(BuildOptions(out, samples_per_shard=4), **options)  # type: ignore[arg-type]
    return build(recipe, how, lambda done: None)


def _photos(folder: Path, count: int = 6) -> Recipe:
    """Small JPEGs with masks, two classes."""
    folder.mkdir(exist_ok=True)
    items = []
    for n in range(count):
        image, mask = folder / f"p{n}.jpg", folder / f"p{n}.png"
        cv2.imwrite(str(image), np.full((20, 24 + n, 3), 40 * n, np.uint8))
        cv2.imwrite(str(mask), np.full((20, 24 + n), n % 3, np.uint8))
        items.append(
            PhotoItem(f"p{n}", image, 1000, "mask", ("a", "b"), mask=mask, keep_truth=True)
        )
    return Recipe("train", ("a", "b"), voc_palette(2), True, items, None, {"source": "test"})


def test_shards_are_sound_and_say_what_they_hold(tmp_path: Path) -> None:
    report = _build(_demo(), tmp_path)
    index = report.index
    assert [shard.num_samples for shard in index.shards] == [4, 4, 4]
    assert [shard.file for shard in index.shards] == [f"train-00000{n}.tar" for n in range(3)]
    assert index.split == "train"
    assert index.ground_truth
    assert index.saliency == "plain estimator (weak substitute)"
    assert len(index.palette) == len(index.classes) + 1
    assert set(index.samples(0)[0].members) == {"jpg", "json", "sal.png", "gt.png"}
    findings = verify(index, 1, lambda done: None)
    assert findings.problems == ()
    assert findings.num_samples == 12


def test_equal_options_give_equal_bytes_for_any_number_of_processes(tmp_path: Path) -> None:
    _build(_demo(), tmp_path / "one", processes=1)
    _build(_demo(), tmp_path / "two", processes=2)
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")


def test_finished_shards_are_kept_and_missing_ones_made_again(tmp_path: Path) -> None:
    _build(_demo(), tmp_path)
    before = content_of(tmp_path)
    (tmp_path / "train-000001.tar").unlink()
    (tmp_path / "train-000002.json").write_text("{}")
    (tmp_path / "index.json").unlink()
    (tmp_path / ".train-000001.tar.0123.tmp").write_bytes(b"left by a killed process")
    report = _build(_demo(), tmp_path)
    assert (report.num_kept, report.num_written) == (1, 2)
    assert content_of(tmp_path) == before
    assert _build(_demo(), tmp_path).num_written == 0


def test_index_is_absent_while_a_shard_is_missing(tmp_path: Path) -> None:
    recipe = _photos(tmp_path / "photos")
    out = tmp_path / "out"
    _build(recipe, out)
    (out / "train-000001.tar").unlink()
    (tmp_path / "photos" / "p5.jpg").unlink()
    with pytest.raises(DataError, match=r"p5\.jpg"):
        _build(recipe, out)
    assert not (out / "index.json").exists()
    assert (out / "train-000000.tar").exists()


def test_other_options_are_refused_in_the_same_folder(tmp_path: Path) -> None:
    _build(_demo(), tmp_path)
    with pytest.raises(DataError, match=r"other options \(seed: 0 -> 1\)"):
        _build(_demo(seed=1), tmp_path)
    with pytest.raises(DataError, match="samples_per_shard: 4 -> 5"):
        _build(_demo(), tmp_path, samples_per_shard=5)


def test_other_options_may_follow_a_build_that_made_nothing(tmp_path: Path) -> None:
    recipe = _photos(tmp_path / "photos")
    jpeg = (tmp_path / "photos" / "p0.jpg").read_bytes()
    (tmp_path / "photos" / "p0.jpg").unlink()
    with pytest.raises(DataError, match=r"p0\.jpg"):
        _build(recipe, tmp_path / "out", samples_per_shard=6)
    (tmp_path / "photos" / "p0.jpg").write_bytes(jpeg)
    assert _build(recipe, tmp_path / "out", samples_per_shard=4).num_written == 2


def test_foreign_shards_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(DataError, match="of another making"):
        _build(_demo(), tmp_path)


def test_shards_end_at_their_size_in_megabytes(tmp_path: Path) -> None:
    recipe = _photos(tmp_path / "photos")
    report = _build(recipe, tmp_path / "out", samples_per_shard=0, shard_mb=0.002)
    assert [shard.num_samples for shard in report.index.shards] == [2, 2, 2]


def test_original_jpeg_bytes_are_kept(tmp_path: Path) -> None:
    recipe = _photos(tmp_path / "photos")
    index = _build(recipe, tmp_path / "out").index
    member = index.samples(0)[1].members["jpg"]
    tar = (tmp_path / "out" / index.shards[0].file).read_bytes()
    jpeg = (tmp_path / "photos" / "p1.jpg").read_bytes()
    assert tar[member.offset : member.offset + member.size] == jpeg


def test_an_image_without_classes_is_kept_and_counted(tmp_path: Path) -> None:
    index = _build(_photos(tmp_path / "photos"), tmp_path / "out").index
    assert (index.num_samples, index.num_labelled) == (6, 4)
    assert [sample.classes for sample in index.samples(0)] == [(), (0,), (1,), ()]


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


Damage = Callable[[Path], object]


def _zero_tail(path: Path) -> None:
    """What an interrupted copy leaves on some file systems."""
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(len(content) - half))


BAD: dict[str, tuple[str, Damage, str]] = {
    "missing image": ("p1.jpg", Path.unlink, r"p1\.jpg: the image cannot be read \(No such file"),
    "cut short": ("p1.jpg", _cut_short, r"p1\.jpg: is no whole JPEG"),
    "tail of zeros": ("p1.jpg", _zero_tail, r"p1\.jpg: is no whole JPEG \(no end marker\)"),
    "no image": ("p1.jpg", lambda p: p.write_bytes(b"hello"), r"p1\.jpg: is neither a JPEG"),
    "empty": ("p1.jpg", lambda p: p.write_bytes(b""), r"p1\.jpg: is neither a JPEG"),
    "missing mask": ("p1.png", Path.unlink, r"p1\.png: the mask cannot be read"),
    "mask of another size": (
        "p1.png",
        lambda p: cv2.imwrite(str(p), np.zeros((9, 9), np.uint8)),
        r"p1\.png: the mask is 9x9 pixels, its image 25x20",
    ),
    "mask in colour": (
        "p1.png",
        lambda p: cv2.imwrite(str(p), np.zeros((20, 25, 3), np.uint8)),
        r"p1\.png: labels are a palette or 8-bit gray PNG",
    ),
    "label out of range": (
        "p1.png",
        lambda p: cv2.imwrite(str(p), np.full((20, 25), 3, np.uint8)),
        r"p1: class 2 is out of range 0\.\.1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sample_stops_the_build_or_is_listed(tmp_path: Path, name: str) -> None:
    file, damage, text = BAD[name]
    recipe, out = _photos(tmp_path / "photos"), tmp_path / "out"
    damage(tmp_path / "photos" / file)
    with pytest.raises(DataError, match=text):
        _build(recipe, out)
    assert not (out / "index.json").exists()
    report = _build(recipe, out, skip_bad=True)
    assert [one.key for one in report.refused] == ["p1"]
    assert report.index.num_samples == 5
    listed = json.loads((out / "quarantine.json").read_text())["samples"]
    assert [one["key"] for one in listed] == ["p1"]
    assert listed[0]["reason"] == report.refused[0].reason
    assert verify(report.index, 1, lambda done: None).problems == ()


def test_truth_out_of_range_is_found_where_labels_are_stated_too(tmp_path: Path) -> None:
    recipe = _photos(tmp_path / "photos")
    items = [
        replace(item, labels="list", classes=(0,))
        for item in recipe.items
        if isinstance(item, PhotoItem)
    ]
    cv2.imwrite(str(tmp_path / "photos" / "p2.png"), np.full((20, 26), 7, np.uint8))
    with pytest.raises(DataError, match=r"p2: mask label 7 is out of range 0\.\.2"):
        _build(replace(recipe, items=items), tmp_path / "out")


def test_mended_sample_is_taken_once_bad_ones_are_not_skipped(tmp_path: Path) -> None:
    recipe, out = _photos(tmp_path / "photos"), tmp_path / "out"
    kept = (tmp_path / "photos" / "p1.jpg").read_bytes()
    (tmp_path / "photos" / "p1.jpg").write_bytes(b"")
    _build(recipe, out, skip_bad=True)
    assert _build(recipe, out, skip_bad=True).num_written == 0
    (tmp_path / "photos" / "p1.jpg").write_bytes(kept)
    report = _build(recipe, out)
    assert (report.num_written, report.num_kept) == (1, 1)
    assert report.index.num_samples == 6
    assert not (out / "quarantine.json").exists()


def test_a_mended_sample_is_taken_while_others_are_skipped(tmp_path: Path) -> None:
    recipe, out = _photos(tmp_path / "photos"), tmp_path / "out"
    kept = (tmp_path / "photos" / "p1.jpg").read_bytes()
    for name in ("p0.jpg", "p1.jpg"):
        (tmp_path / "photos" / name).write_bytes(b"")
    assert _build(recipe, out, skip_bad=True).index.num_samples == 4
    (tmp_path / "photos" / "p1.jpg").write_bytes(kept)
    report = _build(recipe, out, skip_bad=True)
    assert report.index.num_samples == 5
    assert [one.key for one in report.refused] == ["p0"]


@pytest.mark.parametrize("name", ["photos/p1.jpg", "photos/p1.png", "maps/p1.png"])
def test_a_replaced_image_mask_or_map_is_taken(tmp_path: Path, name: str) -> None:
    """The shards are those of the files as they are, not as they were."""
    recipe, out = _photos(tmp_path / "photos"), tmp_path / "out"
    (tmp_path / "maps").mkdir()
    for n in range(6):
        shape = recipe.items[n].read().pixels.shape[:2]
        cv2.imwrite(str(tmp_path / "maps" / f"p{n}.png"), np.zeros(shape, np.uint8))
    recipe = replace(recipe, saliency=ReadySaliency.of(tmp_path / "maps"))
    before = content_of(_build(recipe, out).index.root)
    assert _build(recipe, out).num_written == 0
    path = tmp_path / name
    old = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    cv2.imwrite(str(path), np.where(old > 0, 0, 1).astype(np.uint8))
    assert _build(recipe, out).num_written == 1
    after = content_of(out)
    assert [key for key in after if key.endswith(".tar") and after[key] != before[key]] == [
        "train-000000.tar"
    ]


def test_what_was_made_of_a_file_that_is_gone_is_kept(tmp_path: Path) -> None:
    """Originals may be deleted once the shards are there."""
    recipe, out = _photos(tmp_path / "photos"), tmp_path / "out"
    before = content_of(_build(recipe, out).index.root)
    (tmp_path / "photos" / "p1.jpg").unlink()
    assert _build(recipe, out).num_written == 0
    assert content_of(out) == before


def _rebuild(recipe: Recipe, out: Path, **options: Any) -> Report:
    """Build with the sizes that the photographs have now, as the scripts read them."""
    photos = (item for item in recipe.items if isinstance(item, PhotoItem))
    items = [replace(item, num_bytes=file_bytes(item.image)) for item in photos]
    return _build(replace(recipe, items=items), out, **options)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_files_that_are_gone_do_not_move_the_cuts(tmp_path: Path, skip_bad: bool) -> None:
    """A file that is not there has no size; where shards end by size, they still end there."""
    recipe, out = _photos(tmp_path / "photos"), tmp_path / "out"
    photos = [item for item in recipe.items if isinstance(item, PhotoItem)]
    shard_mb = 2e-6 * file_bytes(photos[0].image)

    def build(skip_bad: bool = skip_bad) -> Report:
        return _rebuild(recipe, out, samples_per_shard=0, shard_mb=shard_mb, skip_bad=skip_bad)

    (tmp_path / "photos").rename(tmp_path / "not there yet")
    with pytest.raises(DataError, match=r"photos/p0.jpg: the image cannot be read"):
        build(skip_bad=False)
    (tmp_path / "not there yet").rename(tmp_path / "photos")
    if skip_bad:  # one that is listed and never was there
        photos[5].image.unlink()
    assert len(build().index.shards) > 1
    before = content_of(out)
    for item in photos[1:5]:
        item.image.unlink()
    assert build().num_written == 0
    assert content_of(out) == before


def test_a_mended_sample_that_moves_the_cuts_is_in_exactly_one_shard(tmp_path: Path) -> None:
    recipe, out = _photos(tmp_path / "photos"), tmp_path / "out"
    photos = [item for item in recipe.items if isinstance(item, PhotoItem)]
    cut = {"samples_per_shard": 0, "shard_mb": 0.002}

    def build(first: int, skip_bad: bool) -> Index:
        sizes = [first, *[1000] * 5]
        items = [replace(p, num_bytes=n) for p, n in zip(photos, sizes, strict=True)]
        return _build(replace(recipe, items=items), out, skip_bad=skip_bad, **cut).index

    build(0, skip_bad=True)  # the first image is not there yet
    index = build(1000, skip_bad=False)
    keys = [sample.key for shard in range(len(index.shards)) for sample in index.samples(shard)]
    assert keys == [f"p{n}" for n in range(6)]
    assert {path.name for path in out.glob("*.tar")} == {shard.file for shard in index.shards}


@pytest.mark.parametrize("skip_bad", [False, True])
def test_no_shard_is_made_anew_without_its_files_of_before(tmp_path: Path, skip_bad: bool) -> None:
    """A late image moves the cuts; samples whose originals are gone would be lost."""
    recipe, out = _photos(tmp_path / "photos"), tmp_path / "out"
    photos = [item for item in recipe.items if isinstance(item, PhotoItem)]
    shard_mb = 2e-6 * file_bytes(photos[0].image)

    def build(skip_bad: bool) -> Report:
        return _rebuild(recipe, out, samples_per_shard=0, shard_mb=shard_mb, skip_bad=skip_bad)

    photos[0].image.rename(tmp_path / "late.jpg")
    build(skip_bad=True)
    before = content_of(out)
    (tmp_path / "late.jpg").rename(photos[0].image)
    kept = {item.image: item.image.read_bytes() for item in photos[3:]}
    for image in kept:
        image.unlink()
    with pytest.raises(DataError, match=r"files of \d samples .* are gone, of p3 the first"):
        build(skip_bad)
    assert content_of(out) == before
    for image, content in kept.items():
        image.write_bytes(content)
    assert build(skip_bad=False).index.num_samples == 6


def test_originals_that_were_refused_may_go_and_others_are_not_forgotten(tmp_path: Path) -> None:
    recipe, out = _photos(tmp_path / "photos"), tmp_path / "out"
    photos = [item for item in recipe.items if isinstance(item, PhotoItem)]

    def build() -> Report:
        return _rebuild(recipe, out, samples_per_shard=3, skip_bad=True)

    contents = [photo.image.read_bytes() for photo in photos]
    photos[0].image.unlink()
    photos[1].image.write_bytes(b"no image")
    assert [one.key for one in build().refused] == ["p0", "p1"]
    photos[0].image.write_bytes(contents[0])
    photos[1].image.unlink()  # it is in no shard
    photos[5].image.unlink()  # it is in one, which stays
    assert [one.key for one in build().refused] == ["p1"]
    photos[4].image.write_bytes(contents[3])
    with pytest.raises(DataError, match=r"files of 1 samples .* are gone, of p5 the first"):
        build()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"classes": ("a", "b", "a")}, "class 'a' stands twice"),
        ({"classes": tuple(map(str, range(255)))}, "255 classes: labels are 8-bit"),
        ({"split": "a/b"}, "split 'a/b': is part of file names"),
        ({"split": ""}, "split '': is part of file names"),
    ],
)
def test_classes_and_splits_that_cannot_be_named_so(
    tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    with pytest.raises(DataError, match=text):
        _build(replace(_photos(tmp_path / "photos"), **change), tmp_path / "out")


def test_duplicate_and_illegal_keys_are_refused_or_listed(tmp_path: Path) -> None:
    recipe = _photos(tmp_path / "photos")
    first = recipe.items[0]
    assert isinstance(first, PhotoItem)
    for key, text in (("p1", "'p1' comes twice"), ("a.b", r"'a\.b': a key is 1 to")):
        items = [*recipe.items, replace(first, key=key)]
        with pytest.raises(DataError, match=text):
            _build(replace(recipe, items=items), tmp_path / f"out{len(key)}")
        report = _build(replace(recipe, items=items), tmp_path / f"out{len(key)}", skip_bad=True)
        assert [one.key for one in report.refused] == [key]
        assert report.index.num_samples == 6


def test_nothing_to_build_from_is_an_error(tmp_path: Path) -> None:
    recipe = _photos(tmp_path / "photos")
    with pytest.raises(DataError, match="no image to build shards from"):
        _build(replace(recipe, items=[]), tmp_path / "out")
    for item in recipe.items:
        assert isinstance(item, PhotoItem)
        item.image.unlink()
    with pytest.raises(DataError, match="every image was bad"):
        _build(recipe, tmp_path / "out", skip_bad=True)
    assert not (tmp_path / "out" / "index.json").exists()


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.* cannot be written"):
        _build(_demo(), tmp_path / "file" / "out")
