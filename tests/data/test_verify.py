"""Damaged shards are found, and sound ones are called so."""

import json
from pathlib import Path

import pytest
from build_script import run_script
from shardmaker import make_shards

from auxdist.data.index import Index, load_index
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
