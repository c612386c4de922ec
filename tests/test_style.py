"""The style of the project, and that each rule of it is able to fail."""

import statistics
from collections.abc import Callable

import pytest
import styleguide
from styleguide import ROOT, Source

PRODUCT = styleguide.sources("auxdist", "launch", "shards")
SCRIPTS = styleguide.sources("launch", "shards")
EVERYTHING = [*PRODUCT, *styleguide.sources("tests")]
TEXTS = [
    path
    for pattern in ("*.md", "*.toml", "*.txt", "Makefile", "configs/**/*.yaml", ".ci/*")
    for path in sorted(ROOT.glob(pattern))
]

Rule = Callable[[Source], list[str]]


def offences(rule: Rule, sources: list[Source]) -> list[str]:
    return [offence for source in sources for offence in rule(source)]


# The project.


@pytest.mark.parametrize(
    "rule", [styleguide.long_functions, styleguide.long_module, styleguide.swallowed_errors]
)
def test_all_python_files_keep(rule: Rule) -> None:
    assert offences(rule, EVERYTHING) == []


@pytest.mark.parametrize(
    "rule", [styleguide.wrong_direction, styleguide.executes_data, styleguide.undocumented]
)
def test_all_files_of_the_product_keep(rule: Rule) -> None:
    assert offences(rule, PRODUCT) == []


def test_most_functions_are_short() -> None:
    lengths = [styleguide.length(f) for source in PRODUCT for f in styleguide.functions(source)]
    median, p90 = statistics.median(lengths), statistics.quantiles(lengths, n=10)[-1]
    print(f"{len(lengths)} functions: median {median:.0f} lines, 90th percentile {p90:.0f}")
    assert median <= 12
    assert p90 <= 35


def test_modules_do_not_import_one_another_in_a_circle() -> None:
    assert styleguide.import_cycle(PRODUCT) == []


def test_one_module_knows_torch_distributed() -> None:
    users = [source.path for source in PRODUCT if styleguide.uses_torch_distributed(source)]
    assert users == ["auxdist/world.py"]


def test_scripts_import_only_auxdist_and_shadow_no_package() -> None:
    assert {source.path.split("/")[0] for source in SCRIPTS} == {"launch", "shards"}
    assert offences(styleguide.foreign_in_script, SCRIPTS) == []
    assert [told for source in SCRIPTS for told in styleguide.shadowing_file(source.path)] == []


def test_every_file_is_named_after_what_it_is() -> None:
    assert [told for source in EVERYTHING for told in styleguide.nameless_file(source.path)] == []


def test_nothing_is_left_over_and_no_file_names_a_path_of_its_author() -> None:
    texts = {source.path: source.text for source in EVERYTHING}
    texts |= {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in TEXTS}
    assert len(texts) > len(EVERYTHING) + 5
    assert [told for path, text in texts.items() for told in styleguide.leftovers(path, text)] == []


# The rules: each is able to fail, and leaves good code alone.

LONG = "def f():\n" + "    x = 1\n" * 60
DOCUMENTED = '"""Text."""\n'


@pytest.mark.parametrize(
    ("rule", "path", "text", "expected"),
    [
        (styleguide.long_functions, "a.py", LONG, "a.py:1: f has 61 lines, the limit is 60"),
        (styleguide.long_module, "a.py", "x = 1\n" * 401, "a.py: 401 lines, the limit is 400"),
        (
            styleguide.wrong_direction,
            "auxdist/model/a.py",
            "def f():\n    from auxdist.data.reader import x",
            "auxdist/model/a.py:2: model.a may not import data.reader",
        ),
        (
            styleguide.wrong_direction,
            "auxdist/model/a.py",
            "import auxdist.data.plan",
            "model.a may not import data.plan",
        ),
        (
            styleguide.wrong_direction,
            "auxdist/train/loop.py",
            "from auxdist import jobs",
            "train.loop may not import jobs",
        ),
        (
            styleguide.wrong_direction,
            "auxdist/data/plan.py",
            "from auxdist.data import stream",
            "data.plan may not import data.stream",
        ),
        (
            styleguide.wrong_direction,
            "auxdist/labels/refresh.py",
            "from auxdist.evaluate.predict import x",
            "labels.refresh may not import evaluate.predict",
        ),
        (styleguide.wrong_direction, "auxdist/cli.py", "import launch.slurm", "cli may not import"),
        (
            styleguide.wrong_direction,
            "auxdist/new.py",
            "",
            "auxdist/new.py: has no place in LAYERS",
        ),
        (styleguide.wrong_direction, "auxdist/cli.py", "from .jobs import x", "relative import"),
        (styleguide.foreign_in_script, "launch/a.py", "import torch", "not torch"),
        (styleguide.executes_data, "a.py", "import pickle", "pickle executes data"),
        (styleguide.executes_data, "a.py", "from marshal import load", "marshal.load executes"),
        (styleguide.executes_data, "a.py", "eval('1')", "eval executes data"),
        (styleguide.executes_data, "a.py", "exec('1')", "exec executes data"),
        (styleguide.executes_data, "a.py", "yaml.load(x)", "yaml.load executes data"),
        (styleguide.executes_data, "a.py", "os.system('ls')", "os.system executes data"),
        (styleguide.executes_data, "a.py", "from yaml import load", "yaml.load executes data"),
        (styleguide.executes_data, "a.py", "torch.load(x)", "needs weights_only=True"),
        (
            styleguide.executes_data,
            "a.py",
            "torch.load(x, weights_only=False)",
            "needs weights_only=True",
        ),
        (styleguide.executes_data, "a.py", "np.load(x, allow_pickle=True)", "allow_pickle"),
        (styleguide.executes_data, "a.py", "run(x, shell=True)", "shell=True executes text"),
        (
            styleguide.swallowed_errors,
            "a.py",
            "try:\n    f()\nexcept Exception:\n    pass",
            "a.py:3: catches everything and says nothing",
        ),
        (styleguide.swallowed_errors, "a.py", "try:\n    f()\nexcept:\n    ...", "catches"),
        (styleguide.undocumented, "a.py", "x = 1", "a.py: has no docstring"),
        (
            styleguide.undocumented,
            "a.py",
            DOCUMENTED + "def f() -> None:\n    pass",
            "a.py:2: f has no docstring",
        ),
        (
            styleguide.undocumented,
            "a.py",
            DOCUMENTED + "class A:\n    'Text.'\n    def f(self) -> None:\n        pass",
            "a.py:4: f has no docstring",
        ),
        (
            styleguide.undocumented,
            "a.py",
            DOCUMENTED + "def f(a, *b, c: int):\n    'Text.'",
            "a.py:2: f has no annotation of a, b, the result",
        ),
    ],
)
def test_a_rule_is_able_to_fail(rule: Rule, path: str, text: str, expected: str) -> None:
    found = rule(Source(path, text))
    assert len(set(found)) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (styleguide.long_functions, "a.py", LONG.removesuffix("    x = 1\n")),
        (styleguide.wrong_direction, "auxdist/train/loop.py", "import auxdist.model.losses"),
        (
            styleguide.wrong_direction,
            "auxdist/records.py",
            "if TYPE_CHECKING:\n    from auxdist.ops.affinity import x",
        ),
        (styleguide.executes_data, "a.py", "torch.load(x, weights_only=True); re.compile(x)"),
        (styleguide.executes_data, "a.py", "from pickle import UnpicklingError"),
        (styleguide.executes_data, "a.py", "yaml.safe_load(x); model.eval(); np.load(x)"),
        (styleguide.swallowed_errors, "a.py", "try:\n    f()\nexcept OSError:\n    pass"),
        (styleguide.swallowed_errors, "a.py", "try:\n    f()\nexcept Exception:\n    log()"),
        (
            styleguide.undocumented,
            "a.py",
            DOCUMENTED + "def _f(a):\n    pass\nclass _A:\n    def f(self):\n        pass",
        ),
    ],
)
def test_a_rule_leaves_good_code_alone(rule: Rule, path: str, text: str) -> None:
    assert rule(Source(path, text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed.checkpoint import save",
        "def f():\n    torch.distributed.barrier()",
    ],
)
def test_each_way_to_torch_distributed_is_seen(text: str) -> None:
    assert styleguide.uses_torch_distributed(Source("a.py", text))
    assert not styleguide.uses_torch_distributed(Source("a.py", "import torch.nn.parallel"))


def test_a_circle_of_imports_is_seen() -> None:
    first = Source("auxdist/errors.py", "import auxdist.config")
    second = Source("auxdist/config.py", "from auxdist import records")
    third = Source("auxdist/records.py", "from auxdist.errors import x")
    expected = ["config", "errors", "records"]
    assert styleguide.import_cycle([first, second, third]) == expected
    late = Source("auxdist/records.py", "def f():\n    from auxdist.errors import x")
    assert styleguide.import_cycle([first, second, late]) == []


def test_vague_shadowing_and_leftover_names_are_seen() -> None:
    assert styleguide.nameless_file("auxdist/data/utils.py")
    assert styleguide.nameless_file("auxdist/misc/a.py")
    assert styleguide.shadowing_file("launch/submitit.py")
    assert styleguide.shadowing_file("shards/types.py")
    assert not styleguide.shadowing_file("launch/slurm.py")
    assert styleguide.leftovers("a.md", "one\n# TO" + "DO: two") == [
        "a.md:2: 'TO" + "DO' does not belong here"
    ]
    assert styleguide.leftovers("a.md", "see /ho" + "me/ann/main")
