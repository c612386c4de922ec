"""Configuration files: what is read, what is written, and what every mistake is told."""

import math
import random
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import pytest
import yaml

from auxdist.config import METHOD_AFFINITY, Config
from auxdist.configfile import config_from_mapping, dump_config, load_config, located
from auxdist.errors import ConfigError

NASTY = [
    "off",
    "null",
    "~",
    "1e-3",
    "yes",
    "010",
    "24:00",
    "a: b",
    "#x",
    " lead",
    "",
    "é ü",
    "=",
    "<<",
]
NASTY += [
    "two\nlines",
    "tab\t",
    "'\"",
    "- x",
    "{a}",
    "2026-01-01",
    "!!python/name:os.system",
    "\x07",
]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return [problem.replace(f"{path.parent}/", "") for problem in caught.value.problems]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "x.yaml", "name: x\ntrain:\n  rounds: 2\n")


# What is read.


def test_a_file_states_only_what_differs_from_the_defaults(file: Path) -> None:
    default = Config()
    preset = replace(default.model, affinity=METHOD_AFFINITY["auxsegnet+"])
    expected = replace(default, name="x", model=preset, train=replace(default.train, rounds=2))
    assert load_config(file) == expected


def test_an_empty_file_is_the_default_configuration(tmp_path: Path) -> None:
    assert load_config(write(tmp_path / "x.yaml", "# nothing\n")).name == "run"
    assert load_config(write(tmp_path / "x.yaml", "train:\nmodel: {}\n")).train == Config().train


def test_later_overrides_win_over_earlier_ones_and_the_file(file: Path) -> None:
    overrides = ["train.rounds=3", "train={epochs: 7, rounds: 5}", "train.epochs=8"]
    assert load_config(file, overrides).train == replace(Config().train, rounds=5, epochs=8)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.optimiser.learning_rate=1e-3", "train.optimiser.learning_rate", 1e-3),
        ("train.optimiser.learning_rate=7E-4", "train.optimiser.learning_rate", 7e-4),
        ("train.optimiser.head_factor=10", "train.optimiser.head_factor", 10.0),
        ("train.optimiser.power=.5", "train.optimiser.power", 0.5),
        ("launch.time_min=1_000", "launch.time_min", 1000),
        ("model.affinity.unary_pred=off", "model.affinity.unary_pred", "off"),
        ('model.affinity.unary_pred="off"', "model.affinity.unary_pred", "off"),
        ("data.crop.pad_label=255", "data.crop.pad_label", 255),
        ("labels.cam_scales=[1, 5e-1]", "labels.cam_scales", (1.0, 0.5)),
        ("labels.cam_scales=[]", "labels.cam_scales", ()),
        ("labels.cam_flip=no", "labels.cam_flip", False),
        ("data.val=", "data.val", None),
        ("data.val=null", "data.val", None),
        ('data.val="null"', "data.val", "null"),
        ("launch.partition=off", "launch.partition", "off"),
        ("launch.account=007", "launch.account", "007"),
        ("launch.setup=[module load cuda, 'export A=1']", "launch.setup", None),
        ("launch.extra={qos: 1}", "launch.extra", {"qos": "1"}),
    ],
)
def test_a_value_is_read_as_its_field_wants_it(
    file: Path, override: str, key: str, value: Any
) -> None:
    found: Any = load_config(file, [override])
    for part in key.split("."):
        found = getattr(found, part)
    expected = ("module load cuda", "export A=1") if key == "launch.setup" else value
    assert found == expected
    assert type(found) is type(expected)


def test_extra_sbatch_options_of_file_and_overrides_add_up(tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml", "launch: {extra: {qos: low, mail-type: END}}\n")
    extra = load_config(path, ["launch.extra.qos=high", "launch.extra.comment=mine"]).launch.extra
    assert extra == {"qos": "high", "mail-type": "END", "comment": "mine"}


@pytest.mark.parametrize("method", ["auxsegnet", "auxsegnet+"])
def test_the_method_sets_the_affinity_defaults_below_what_is_stated(
    file: Path, method: Literal["auxsegnet", "auxsegnet+"]
) -> None:
    preset = METHOD_AFFINITY[method]
    assert load_config(file, [f"model.method={method}"]).model.affinity == preset
    stated = ["model.affinity.whiten=true", f"model.method={method}", "model.affinity.unary=false"]
    expected = replace(preset, whiten=True, unary=False)
    assert load_config(file, stated).model.affinity == expected


# Bases.


def test_a_file_goes_over_its_base_which_is_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "base.yaml", "name: b\nseed: 5\ntrain: {rounds: 9, epochs: 9}\n")
    path = write(tmp_path / "sub/x.yaml", "base: ../base.yaml\nname: x\ntrain: {epochs: 3}\n")
    config = load_config(path)
    assert (config.name, config.seed, config.train.rounds, config.train.epochs) == ("x", 5, 9, 3)


def test_a_problem_in_the_base_is_placed_in_the_base(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "name: b\nsead: 5\n")
    path = write(tmp_path / "x.yaml", "base: base.yaml\n")
    assert problems(path) == ["base.yaml:2: sead is not a key; did you mean seed?"]


# Mistakes.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "train:\n  rounds: 2\n  global_bach: 4\n",
            "x.yaml:3: train.global_bach is not a key; did you mean global_batch?",
        ),
        ("rounds: 3\n", "x.yaml:1: rounds is not a key; did you mean train.rounds?"),
        (
            "global_batch: 3\n",
            "x.yaml:1: global_batch is not a key; did you mean classifier.global_batch or "
            "train.global_batch?",
        ),
        (
            "data:\n  crop:\n    zzz:\n      - 1\n",
            "x.yaml:3: data.crop.zzz is not a key; use one of: size, scale_min, scale_max, "
            "scale_per, flip_probability, pad_label.",
        ),
        (
            "seed: 1\ntrain: {rounds: 1}\nseed: 2\n",
            "x.yaml:3: seed is given twice; keep one of the two.",
        ),
        (
            "train:\n  rounds: 1\n  epochs: 2\n  rounds: 1\n",
            "x.yaml:4: train.rounds is given twice; keep one of the two.",
        ),
        ("[1, 2]: 3\n", "x.yaml:1: a key of the file is not text; write text."),
        ("train: 4\n", 'x.yaml:1: train is "4"; write a section with keys of its own.'),
        (
            "- train\n",
            "x.yaml:1: the file is a list; write a mapping of sections, such as "
            "`train: {rounds: 4}`.",
        ),
        (
            "train: {rounds: 2.5}\n",
            'x.yaml:1: train.rounds is "2.5"; write a whole number in digits, such as 4.',
        ),
        (
            "train: {rounds: 1__0}\n",
            'x.yaml:1: train.rounds is "1__0"; write a whole number in digits, such as 4.',
        ),
        (
            "train: {rounds: true}\n",
            'x.yaml:1: train.rounds is "true"; write a whole number in digits, such as 4.',
        ),
        (
            "launch: {time_min: 24:00}\n",
            'x.yaml:1: launch.time_min is "24:00"; write a whole number in digits, such as 4.',
        ),
        (
            "train: {rounds: 010}\n",
            'x.yaml:1: train.rounds is "010"; write a whole number in digits, such as 4.',
        ),
        (
            'train: {rounds: "4"}\n',
            'x.yaml:1: train.rounds is "4"; write a whole number in digits, such as 4.',
        ),
        (
            "labels: {cam_threshold: .inf}\n",
            'x.yaml:1: labels.cam_threshold is ".inf"; write a finite number, such as 0.5 or 7e-4.',
        ),
        (
            "labels: {cam_threshold: 1e999}\n",
            'x.yaml:1: labels.cam_threshold is "1e999"; write a finite number, such as 0.5 or '
            "7e-4.",
        ),
        (
            "labels: {cam_threshold: 1__0}\n",
            'x.yaml:1: labels.cam_threshold is "1__0"; write a finite number, such as 0.5 or 7e-4.',
        ),
        (
            "labels: {cam_threshold: true}\n",
            'x.yaml:1: labels.cam_threshold is "true"; write a finite number, such as 0.5 or 7e-4.',
        ),
        (
            "labels: {cam_threshold: [0.2]}\n",
            "x.yaml:1: labels.cam_threshold is a list; write one plain value.",
        ),
        ("labels: {cam_flip: 1}\n", 'x.yaml:1: labels.cam_flip is "1"; write true or false.'),
        (
            "labels: {cam_scales: 1.0}\n",
            'x.yaml:1: labels.cam_scales is "1.0"; write a list, such as [0.5, 1.0].',
        ),
        (
            "labels:\n  cam_scales:\n    - 1.0\n    - x\n",
            'x.yaml:4: labels.cam_scales is "x"; write a finite number, such as 0.5 or 7e-4.',
        ),
        (
            "launch: {setup: module load cuda}\n",
            'x.yaml:1: launch.setup is "module load cuda"; write a list, such as [one, two].',
        ),
        (
            "launch: {extra: {qos: [1]}}\n",
            "x.yaml:1: launch.extra.qos is a list; write one plain value.",
        ),
        (
            "launch: {extra: qos}\n",
            'x.yaml:1: launch.extra is "qos"; write a section with keys of its own.',
        ),
        ("name:\n", 'x.yaml:1: name is empty; write text; "" is the empty text.'),
        (
            "model: {backbone: resnet}\n",
            'x.yaml:1: model.backbone is "resnet"; write resnet38 (one of resnet38, small, '
            "efficientnet-lite0, timm).",
        ),
        ("train: {engine: 7}\n", 'x.yaml:1: train.engine is "7"; write one of ddp, deepspeed.'),
        ("name: !!python/name:os.system x\n", 'x.yaml:1: name is "x"; write one plain value.'),
        ("name: !mine x\n", 'x.yaml:1: name is "x"; write one plain value.'),
        (
            "train: [1\n",
            "x.yaml:2: is not YAML (expected ',' or ']', but got '<stream end>'); mend it there or "
            "put the text in quotes.",
        ),
        (
            "name: a\x01\n",
            "x.yaml: is not YAML (special characters are not allowed); mend it there or put the "
            "text in quotes.",
        ),
        (
            "base: [a]\n",
            "x.yaml:1: base is a list; write the path of one YAML file, relative to this file.",
        ),
        (
            "base: none.yaml\n",
            "x.yaml:1: base none.yaml: cannot be read (No such file or directory); give the path "
            "of a YAML file.",
        ),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert problems(write(tmp_path / "x.yaml", text)) == [expected]


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    expected = (
        "none.yaml: cannot be read (No such file or directory); give the path of a YAML file."
    )
    assert problems(tmp_path / "none.yaml") == [expected]
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\n")
    (found,) = problems(tmp_path / "x.yaml")
    assert found.startswith("x.yaml: is not YAML (invalid start byte)")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "train.foo=1",
            "--set train.foo: train.foo is not a key; use one of: rounds, epochs, ",
        ),
        ("train.round=1", "--set train.round: train.round is not a key; did you mean rounds?"),
        ("train.rounds", "--set train.rounds: is not key=value; write e.g. --set train.rounds=2."),
        ("train..rounds=1", "--set train..rounds=1: is not key=value; write e.g. "),
        ("=1", "--set =1: is not key=value; write e.g. --set train.rounds=2."),
        ("data.val=[1", "--set data.val: is not YAML (expected ',' or ']', but got "),
        ("train=3", '--set train: train is "3"; write a section with keys of its own.'),
        ("train.rounds=x", '--set train.rounds: train.rounds is "x"; write a whole number '),
        ("name=a #1", "--set name=a #1: # begins a comment in YAML; quote the value, e.g. --set "),
        ("data.val=#1", "--set data.val=#1: # begins a comment in YAML; quote the value"),
        ("base=x.yaml", "--set base: base is not a key; use one of: name, seed, "),
    ],
)
def test_a_mistake_in_an_override_is_named(file: Path, override: str, expected: str) -> None:
    (found,) = problems(file, override)
    assert found.startswith(expected)


def test_a_base_may_not_have_a_base_nor_be_given_twice(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "name: a\n")
    write(tmp_path / "b.yaml", "seed: 1\nbase: a.yaml\n")
    path = write(tmp_path / "x.yaml", "base: b.yaml\nbase: b.yaml\n")
    assert problems(path) == [
        "x.yaml:2: base is given twice; keep one of the two.",
        "b.yaml:2: base: this file is itself the base of x.yaml, and a base may not have a base; "
        "move the keys of one into the other.",
    ]


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    text = "seeed: 1\nname: []\ntrain: {rounds: x, foo: 1}\nlabels: {cam_scales: [a]}\n"
    path = write(tmp_path / "x.yaml", text)
    found = problems(path, "data.walkers=1", "oops")
    assert len(found) == 7
    with pytest.raises(ConfigError, match=r"seeed(.|\n)*cam_scales"):
        load_config(path)


def test_a_node_that_contains_itself_ends_in_a_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml", "train: &a\n  rounds: *a\n")
    assert problems(path) == ["x.yaml:2: train.rounds is a mapping; write one plain value."]
    assert problems(path, "data=&a {crop: *a}")[-1].startswith("--set data: data.crop.crop ")


def test_problems_of_the_validation_get_the_place_that_states_their_key(file: Path) -> None:
    told = ["train.rounds is 2, but", "train.epochs is 0, but", "seed is 3"]
    expected = [f"{file}:3: {told[0]}", told[1], f"--set seed: {told[2]}"]
    assert located(told, file, ["seed=3"]) == expected


# Mappings and writing.


def test_a_mapping_is_read_like_a_file() -> None:
    config = config_from_mapping({"train": {"rounds": 2}, "labels": {"cam_scales": [1, 0.5]}})
    assert (config.train.rounds, config.labels.cam_scales) == (2, (1.0, 0.5))
    with pytest.raises(ConfigError, match=r"run 7: train\.round is not a key; did you mean rounds"):
        config_from_mapping({"train": {"round": 2}}, "run 7")


def _random_value(hint: Any, rng: random.Random) -> Any:
    if is_dataclass(hint):
        hints, section = get_type_hints(hint), cast(Any, hint)
        return section(**{f.name: _random_value(hints[f.name], rng) for f in fields(hint)})
    if get_origin(hint) is Literal:
        return rng.choice(get_args(hint))
    if get_origin(hint) is tuple:
        return tuple(_random_value(get_args(hint)[0], rng) for _ in range(rng.randrange(4)))
    if get_origin(hint) is dict:
        return {rng.choice(NASTY): rng.choice(NASTY) for _ in range(rng.randrange(4))}
    if get_args(hint):
        return rng.choice([None, _random_value(get_args(hint)[0], rng)])
    return _RANDOM[hint](rng)


def _random_float(rng: random.Random) -> float:
    return rng.choice(
        [0.0, 7e-4, 1e-5, 1e22, -0.0, 5e-324, math.pi, rng.random(), rng.gauss(0, 1e9)]
    )


_RANDOM: dict[Any, Any] = {
    str: lambda rng: rng.choice(NASTY),
    bool: lambda rng: rng.random() < 0.5,
    int: lambda rng: rng.choice([0, 1, -7, 2**63, rng.randrange(10**6)]),
    float: _random_float,
}


@pytest.mark.parametrize("seed", range(25))
def test_what_is_written_is_read_back_equal(tmp_path: Path, seed: int) -> None:
    config = _random_value(Config, random.Random(seed))
    text = dump_config(config)
    path = write(tmp_path / "config.yaml", text)
    assert load_config(path) == config
    assert dump_config(load_config(path)) == text
    assert config_from_mapping(yaml.safe_load(text)) == config
