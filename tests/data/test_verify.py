"""Damaged shards are found, and sound ones are called so."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build_script import run_script
from shardmaker import make_shards

from auxdist.data.index import Index, load_index, table_path
from auxdist.data.verify import Findings, verify


def _verify(index: Index) -> Findings:
    return verify(load_index(index.root), 1, lambda done: None)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Two small shards."""
    return make_shards(tmp_path, 10, 2)


def test_sound_shards_are_called_sound_with_a_summary(index: Index) -> None:
    done = run_script("verify.py", index.root, "--processes", 2)
    assert "10 images in 2 shards" in done.stdout
    assert "1 without a class" in done.stdout
    assert "class0" in done.stdout
    assert done.stdout.endswith("Sound.\n")


def test_flipped_byte_is_found_and_gives_exit_code_2(index: Index) -> None:
    path = index.root / index.shards[1].file
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[index.samples(1)[0].members["jpg"].offset + 200] ^= 255
    path.write_bytes(content)
    done = run_script("verify.py", index.root, "--processes", 1, code=2)
    assert "sha256 is not the one in the index" in done.stdout


def test_cut_and_missing_files_are_found(index: Index) -> None:
    path = index.root / index.shards[0].file
    path.write_bytes(path.read_bytes()[:5000])
    (index.root / index.shards[1].file).unlink()
    problems = "\n".join(_verify(index).problems)
    assert "has 5000 bytes" in problems
    assert "cannot be read (No such file or directory)" in problems


def test_altered_table_is_found(index: Index) -> None:
    path = index.root / index.shards[0].file.replace(".tar", ".json")
    path.write_text(path.read_text().replace("img-00000", "img-99999"))
    problems = _verify(index).problems
    assert any("its sha256 is" in problem for problem in problems)


def alter_table(index: Index, shard: int, alter: Callable[[dict[str, Any]], object]) -> None:
    """Change a table, and the index so that it names the changed one."""
    path = table_path(index.root / index.shards[shard].file)
    table = json.loads(path.read_text())
    alter(table)
    path.write_text(json.dumps(table))
    facts = json.loads((index.root / "index.json").read_text())
    facts["shards"][shard]["table_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (index.root / "index.json").write_text(json.dumps(facts))


def test_members_of_another_sample_are_found(index: Index) -> None:
    def swap(table: dict[str, Any]) -> None:
        one, two = table["samples"][:2]
        one["members"], two["members"] = two["members"], one["members"]

    alter_table(index, 0, swap)
    assert any("not those of its table" in problem for problem in _verify(index).problems)


def test_classes_that_the_sample_does_not_state_are_found(index: Index) -> None:
    alter_table(index, 0, lambda table: table["samples"][0].update(classes=[2]))
    assert any("json: says" in problem for problem in _verify(index).problems)


def test_a_key_in_two_shards_is_found(index: Index) -> None:
    key = index.samples(0)[0].key
    alter_table(index, 1, lambda table: table["samples"][0].update(key=key))
    assert any(f"{key!r} comes 2 times" in problem for problem in _verify(index).problems)


def test_folder_without_an_index_is_an_error(tmp_path: Path) -> None:
    done = run_script("verify.py", tmp_path, code=2)
    assert "no shards here" in done.stderr


def test_facts_that_disagree_are_found(index: Index) -> None:
    path = index.root / "index.json"
    value = json.loads(path.read_text())
    value["classes"] = ["class0"]
    value["shards"][0]["num_labelled"] += 1
    path.write_text(json.dumps(value))
    problems = "\n".join(_verify(index).problems)
    assert "the index says" in problems
    assert "are not all in 0..0" in problems
    assert "is more than 1" in problems
