"""What the project says of itself is true: its dependencies, its make targets, its README."""

import importlib.metadata
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import styleguide
from styleguide import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.lower().split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
README = ROOT / "README.md"
USERS_OWN = {"timm"}
"""Used where it is installed, and never installed by us: it drags in a build of torchvision."""
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "docs" / "reproduce.md"]
OUTSIDE = {"cd", "git", "pip", "tar", "ls", "cat", "head", "tail", "export", "source"}
OUTSIDE |= {"srun", "squeue", "scancel"}


def distribution(requirement: str) -> str:
    """ "PyYAML>=6" as "pyyaml"."""
    return re.split(r"[^\w.-]", requirement)[0].lower()


RUNTIME = {distribution(line) for line in PROJECT["dependencies"]}
EXTRAS = {name: set(map(distribution, v)) for name, v in PROJECT["optional-dependencies"].items()}


@cache
def imported() -> frozenset[str]:
    """Top-level names that the product imports."""
    product = styleguide.sources("auxdist", "launch", "shards")
    names = {name.split(".")[0] for source in product for _, name in styleguide.imports(source)}
    return frozenset(names - {"auxdist", *sys.stdlib_module_names})


def run(*words: str) -> str:
    """What Python prints, called with `words` in the project's folder; it must end well."""
    call = [sys.executable, *words]
    done = subprocess.run(call, check=False, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    return done.stdout


# Dependencies.


def test_every_dependency_has_an_exact_version_in_the_constraints() -> None:
    wanted = RUNTIME.union(*EXTRAS.values()) | {"setuptools"}
    assert sorted(wanted - set(PINS)) == []
    assert [v for v in PINS.values() if not re.fullmatch(r"[0-9][0-9a-z.]*", v)] == []


def test_every_package_that_a_dependency_needs_is_pinned_too() -> None:
    missing = []
    for name in sorted(set(PINS) - {"setuptools"}):
        for requirement in importlib.metadata.requires(name) or []:
            # Markers name extras, other systems and the CUDA build, of which nothing is installed.
            if ";" not in requirement and distribution(requirement) not in _known(PINS):
                missing.append(f"{name} needs {requirement}")
    assert missing == []


def _known(names: dict[str, str]) -> set[str]:
    return {spelling for name in names for spelling in (name, name.replace("_", "-"))}


def test_these_tests_run_with_the_pinned_versions() -> None:
    found = {name: importlib.metadata.version(name) for name in PINS.keys() - {"torch"}}  # a choice
    assert {name: version for name, version in found.items() if version != PINS[name]} == {}


def test_every_dependency_is_imported_and_every_import_is_a_dependency() -> None:
    providers = importlib.metadata.packages_distributions()
    used = {provider.lower() for name in imported() for provider in providers.get(name, [name])}
    assert sorted(used - USERS_OWN) == sorted(RUNTIME | EXTRAS["deepspeed"] | EXTRAS["pretrained"])


def test_auxdist_and_its_help_do_not_import_torch() -> None:
    code = (
        "import sys; import auxdist; from auxdist.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    assert "usage: auxdist" in run("-c", code)


# Commands in the README, CONTRIBUTING and the Makefile.


def commands(page: str) -> list[list[str]]:
    """The commands in the ```sh blocks of a page, as words; prompts and comments fall away."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [words for words in found if words]


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([\w./-]+):(?!=)", text, re.MULTILINE))


@cache
def help_of(*command: str) -> str:
    """What `command --help` prints."""
    program = ["-c", "import sys; from auxdist.cli import main; sys.exit(main())"]
    call = program + list(command[1:]) if command[0] == "auxdist" else list(command)
    return run(*call, "--help")


def faults(words: list[str]) -> list[str]:
    """What is wrong with a command: no such script, verb, option, target or configuration."""
    words = [w for w in words if not re.fullmatch(r"[A-Z_]+=.*", w)]
    configs = [w for w in words if w.startswith("configs/") and w.endswith(".yaml")]
    missing = [f"{name} is not a file" for name in configs if not (ROOT / name).is_file()]
    return missing + _faults_of_program(Path(words[0]).name, words[1:])


def _faults_of_program(program: str, rest: list[str]) -> list[str]:
    if program == "make":
        return [f"make has no target {name}" for name in rest if name not in make_targets()]
    if program == "auxdist":
        return _faults_of_verb(rest)
    if program in ("python", "python3") and rest and rest[0].endswith(".py"):
        there = (ROOT / rest[0]).is_file()
        return _faults_of_options(rest, rest[0]) if there else [f"{rest[0]} is not a file"]
    known = program in OUTSIDE or rest[:1] == ["-m"]
    return [] if known else [f"{program} is not a command that the project brings"]


def _faults_of_verb(rest: list[str]) -> list[str]:
    verb = [word for word in rest[:1] if not word.startswith("-")]
    if verb and not re.search(rf"\b{re.escape(verb[0])}\b", help_of("auxdist")):
        return [f"auxdist has no verb {verb[0]}"]
    return _faults_of_options(rest, "auxdist", *verb)


def _faults_of_options(rest: list[str], *command: str) -> list[str]:
    options = {word.split("=")[0] for word in rest if word.startswith("--")} - {"--help"}
    text = help_of(*command)
    return [f"{o} is not an option of {shlex.join(command)}" for o in options if o not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_on_the_page_exists_with_its_options(page: Path) -> None:
    found = commands(page.read_text("utf-8"))
    assert found
    assert [fault for words in found for fault in faults(words)] == []


def test_the_readme_shows_the_demo_and_the_slurm_line() -> None:
    found = commands(README.read_text("utf-8"))
    assert ["make", "demo"] in found
    assert any(words[:2] == ["python", "launch/slurm.py"] for words in found)


def test_every_test_that_the_readme_names_for_a_promise_exists() -> None:
    page = README.read_text("utf-8")
    files = re.findall(r"`(tests/[\w/]+\.py)`", page)
    assert [name for name in files if not (ROOT / name).is_file()] == []
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    names = re.findall(r"`(test_\w+)`", page)
    assert len(names) >= 20
    assert [name for name in names if f"def {name}(" not in written] == []


def test_the_commands_of_make_demo_exist_with_their_options() -> None:
    call = ["make", "--dry-run", "--always-make", "demo"]
    done = subprocess.run(call, check=True, capture_output=True, text=True, cwd=ROOT)
    named = re.compile(r"launch/|shards/|/auxdist ")
    ours = [shlex.split(line) for line in done.stdout.splitlines() if named.search(line)]
    assert len(ours) == 4
    assert [fault for words in ours for fault in faults(words)] == []


@pytest.mark.parametrize(
    "script", [source.path for source in styleguide.sources("launch", "shards")]
)
def test_every_script_has_a_help(script: str) -> None:
    assert help_of(script).startswith("usage: ")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("make dem", "make has no target dem"),
        ("python launch/none.py", "launch/none.py is not a file"),
        ("python launch/slurm.py --nodess 4", "--nodess is not an option of "),
        ("auxdist none", "auxdist has no verb none"),
        ("python launch/slurm.py configs/none.yaml", "configs/none.yaml is not a file"),
        ("curl x", "curl is not a command that the project brings"),
    ],
)
def test_a_wrong_command_on_a_page_is_seen(line: str, expected: str) -> None:
    (words,) = commands(f"text\n```sh\n$ {line}  # why\n```\n")
    (fault,) = faults(words)
    assert fault.startswith(expected)
