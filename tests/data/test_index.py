"""Shards and their index: what is written is what is found, and nothing else is let in."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset
from shardmaker import keys_in, make_shards

from auxdist.data.index import load_index, read_table, table_path
from auxdist.data.reader import read_member
from auxdist.data.shardfile import SampleFacts, read_members, write_shard
from auxdist.errors import DataError

FACTS = SampleFacts(width=2, height=1, classes=(0,))


def _tar_with(path: Path, info: tarfile.TarInfo, content: bytes = b"") -> Path:
    info.size = len(content)
    with tarfile.open(path, "w") as archive:
        archive.addfile(info, io.BytesIO(content))
    return path


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    index = make_shards(tmp_path, num_samples=5, num_shards=2)
    files = [str(tmp_path / shard.file) for shard in index.shards]
    found = list(webdataset.WebDataset(files, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == list(keys_in(index))
    assert {"jpg", "json", "sal.png", "gt.png"} <= set(found[0])


def test_members_lie_where_the_table_says(tmp_path: Path) -> None:
    index = make_shards(tmp_path, num_samples=4, num_shards=1)
    tar = tmp_path / index.shards[0].file
    with tarfile.open(tar) as archive:
        for sample in index.samples(0):
            for extension, member in sample.members.items():
                expected = archive.extractfile(f"{sample.key}.{extension}")
                assert expected is not None
                assert read_member(tar, member) == expected.read()


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    one = make_shards(tmp_path / "one", num_samples=6, num_shards=2)
    two = make_shards(tmp_path / "two", num_samples=6, num_shards=2)
    assert one.shards == two.shards
    assert one.sha256 == two.sha256


def test_index_counts_samples_and_labelled_samples(tmp_path: Path) -> None:
    index = make_shards(tmp_path, num_samples=17, num_shards=3)
    assert index.num_samples == 17
    assert index.num_labelled == 15
    assert index.shard_sizes().tolist() == [6, 6, 5]
    assert index.shard_sizes(labelled_only=True).tolist() == [6, 5, 4]


def test_a_failed_shard_leaves_nothing_behind(tmp_path: Path) -> None:
    samples = [("same", {"jpg": b"x"}, FACTS)] * 2
    with pytest.raises(DataError, match="'same' comes twice"):
        write_shard(tmp_path / "x-000000.tar", samples)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one sample"):
        write_shard(tmp_path / "x-000000.tar", [])


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "..", "a b", "é", "k" * 81, "a\n"])
def test_unsafe_keys_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match="a key is 1 to 80 of"):
        write_shard(tmp_path / "x-000000.tar", [(key, {"jpg": b"x"}, FACTS)])


@pytest.mark.parametrize("extension", ["", "../x", "JPG", "a.b.c", "__x__"])
def test_unsafe_extensions_are_refused(tmp_path: Path, extension: str) -> None:
    with pytest.raises(DataError, match="an extension is one or two words"):
        write_shard(tmp_path / "x-000000.tar", [("a", {extension: b"x"}, FACTS)])


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "d/a.jpg", "a", "a.b.c.d"])
def test_a_tar_with_unsafe_names_is_refused(tmp_path: Path, name: str) -> None:
    tar = _tar_with(tmp_path / "x.tar", tarfile.TarInfo(name))
    with pytest.raises(DataError, match=r"not a plain file called KEY\.EXTENSION"):
        read_members(tar)


def test_a_tar_with_a_link_is_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(DataError, match="not a plain file"):
        read_members(_tar_with(tmp_path / "x.tar", link))


def test_a_tar_with_a_double_member_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    with pytest.raises(DataError, match=r"'a\.jpg' comes twice"):
        read_members(tmp_path / "x.tar")


def test_a_file_that_is_no_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match=r"x\.tar: is not a readable tar"):
        read_members(tmp_path / "x.tar")


def test_a_folder_without_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index\.json: no shards here"):
        load_index(tmp_path)


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(DataError, match=r"index\.json: is not JSON"):
        load_index(tmp_path)


def test_an_index_without_its_fields_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(DataError, match=r"index\.json: is damaged \(KeyError\('split'\)\)"):
        load_index(tmp_path)


@pytest.mark.parametrize("file", ["../x.tar", "/tmp/x.tar", "a/b.tar", "img.txt", "twice"])
def test_an_index_that_names_other_files_is_refused(tmp_path: Path, file: str) -> None:
    make_shards(tmp_path, 4, 2)
    value = json.loads((tmp_path / "index.json").read_text())
    name = value["shards"][1]["file"]
    value["shards"][0]["file"] = name if file == "twice" else file
    (tmp_path / "index.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"shards must be \.tar files beside it, each named once"):
        load_index(tmp_path)


def test_an_index_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"schema": 0}))
    with pytest.raises(DataError, match="schema 1 was expected"):
        load_index(tmp_path)


def test_a_table_of_other_shards_is_refused(tmp_path: Path) -> None:
    index = make_shards(tmp_path, num_samples=2, num_shards=1)
    table = table_path(tmp_path / index.shards[0].file)
    table.write_text(table.read_text() + " ")
    with pytest.raises(DataError, match="does not belong to this index"):
        index.samples(0)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json: cannot be read"):
        read_table(tmp_path / "gone.json", "0" * 64)


def test_tables_are_read_only_when_needed(tmp_path: Path) -> None:
    index = make_shards(tmp_path, num_samples=4, num_shards=2)
    table_path(tmp_path / index.shards[1].file).unlink()
    again = replace(load_index(tmp_path), split="other")
    assert len(again.samples(0)) == 2
