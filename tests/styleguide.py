"""The rules of style that a machine can check. Each takes one file and returns its offences."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_FUNCTION = 60
MAX_MODULE = 400

LAYERS: tuple[tuple[str, ...], ...] = (
    ("", "errors", "yamlvalue"),
    ("config", "records", "runfolder"),
    ("configfile", "memory", "pretrained", "validation", "world"),
    (
        "ops",
        "data.index",
        "data.keys",
        "data.plan",
        "labels.fuse",
        "labels.statistics",
        "evaluate.confusion",
    ),
    ("model",),
    ("data", "labels.manifest", "observe.events", "evaluate.tables"),
    ("train", "labels.store", "labels.lease", "observe"),
    ("labels", "evaluate", "train.loop", "train.networks"),
    ("train.rounds",),
    ("jobs",),
    ("cli",),
    ("launch", "shards"),
)
"""Who may import whom: a module imports from earlier layers, or from its own room in its own layer.

The longest name that fits a module places it: data.plan lies lower than the rest of data. The
empty name is the package itself.
"""

NEVER = {
    "model": ("data", "labels", "train", "world", "runfolder", "configfile"),
    "ops": ("config", "world", "runfolder", "data"),
    "train": ("jobs",),
    "data": ("model", "world"),
}
"""Imports that the rooms of the left must not have, whatever the layers say."""


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the root of the project, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text)

    @property
    def module(self) -> str:
        """Dotted name without "auxdist": "train.loop", but "launch.slurm"."""
        parts = self.path.removesuffix(".py").removeprefix("auxdist/").split("/")
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def at(self, node: ast.AST, text: str) -> str:
        """An offence with its place."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {text}"


def sources(*folders: str) -> list[Source]:
    """The Python files below the folders."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths]


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(source: Source) -> Iterator[Function]:
    """All functions and methods, nested ones too."""
    yield from (node for node in ast.walk(source.tree) if isinstance(node, Function))


def length(function: Function) -> int:
    """Lines from `def` to the end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def long_functions(source: Source) -> list[str]:
    """Functions of more than MAX_FUNCTION lines."""
    found = [f for f in functions(source) if length(f) > MAX_FUNCTION]
    return [source.at(f, f"{f.name} has {length(f)} lines, the limit is 60") for f in found]


def long_module(source: Source) -> list[str]:
    """A module of more than MAX_MODULE lines."""
    lines = source.text.count("\n")
    return [f"{source.path}: {lines} lines, the limit is 400"] if lines > MAX_MODULE else []


# Imports.


def imports(source: Source, late: bool = True) -> Iterator[tuple[ast.AST, str]]:
    """(node, dotted name) of each import that runs: for `from a import b` a.b, or a where a.b is
    a thing in a module of this project. `late` counts imports inside functions too."""
    for node in _running(source.tree, late):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            names = [f"{start}.{alias.name}" for alias in node.names]
            yield from ((node, name) for name in dict.fromkeys(map(_without_thing, names)))


def _without_thing(name: str) -> str:
    path = ROOT / name.replace(".", "/")
    ours = name.split(".", maxsplit=1)[0] in ("auxdist", "launch", "shards")
    return name.rpartition(".")[0] if ours and not module_exists(path) else name


def module_exists(path: Path) -> bool:
    """True where `path` plus .py is a file, or `path` is a package."""
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _running(tree: ast.AST, late: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, Function) and not late:
            continue
        yield node
        yield from _running(node, late)


def placed(module: str) -> tuple[int, str] | None:
    """(layer, room) of a module."""
    names = {name: layer for layer, names in enumerate(LAYERS) for name in names}
    fits = [name for name in names if module == name or module.startswith(f"{name}.")]
    return (names[max(fits, key=len)], module.split(".", maxsplit=1)[0]) if fits else None


def wrong_direction(source: Source) -> list[str]:
    """Imports from a later layer, from another room of the same layer, or from NEVER."""
    here = placed(source.module)
    if here is None:
        return [f"{source.path}: has no place in LAYERS"]
    found = []
    for node, name in imports(source):
        if name.startswith("."):
            found.append(source.at(node, "relative import; name the whole module"))
        target = _project_module(name)
        there = placed(target) if target else None
        if there is None or target == source.module:
            continue
        later = there[0] > here[0] or (there[0] == here[0] and there[1] != here[1])
        if later or target.split(".")[0] in NEVER.get(here[1], ()):
            found.append(source.at(node, f"{source.module} may not import {target}"))
    return found


def _project_module(name: str) -> str:
    if name.startswith("auxdist."):
        return name.removeprefix("auxdist.")
    return name if name.startswith(("launch", "shards")) else ""


def foreign_in_script(source: Source) -> list[str]:
    """In launch/ and shards/: imports of anything but auxdist and the standard library."""
    allowed = {"auxdist", *sys.stdlib_module_names}
    return [
        source.at(node, f"a script may import auxdist and the standard library, not {name}")
        for node, name in imports(source)
        if name.split(".")[0] not in allowed
    ]


def uses_torch_distributed(source: Source) -> bool:
    """True for a file that imports torch.distributed or reaches it as an attribute."""
    named = any(f"{name}.".startswith("torch.distributed.") for _, name in imports(source))
    return named or any(
        isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed"
        for node in ast.walk(source.tree)
    )


def import_cycle(all_sources: list[Source]) -> list[str]:
    """The modules of a cycle among imports at module level; empty when there is none."""
    modules = {source.module for source in all_sources}
    edges = {
        source.module: {_project_module(name) for _, name in imports(source, late=False)} & modules
        for source in all_sources
    }
    while leaves := [name for name, targets in edges.items() if not targets - {name}]:
        edges = {name: targets - set(leaves) for name, targets in edges.items()}
        for leaf in leaves:
            edges.pop(leaf)
    return sorted(edges)


# Safety.

_EXECUTING_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
_EXECUTING_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"}
_EXECUTING_CALLS |= {"yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all"}


_HARMLESS = "pickle.UnpicklingError"
"""What torch.load raises on a file that holds more than tensors; it must be caught by its name."""


def executes_data(source: Source) -> list[str]:
    """Anything that could run what stands in a file or in a user's text."""
    found = [
        source.at(node, f"{name} executes data")
        for node, name in imports(source)
        if name in _EXECUTING_CALLS
        or (name.split(".")[0] in _EXECUTING_MODULES and name != _HARMLESS)
    ]
    calls = [node for node in ast.walk(source.tree) if isinstance(node, ast.Call)]
    return found + [source.at(call, text) for call in calls if (text := _unsafe_call(call))]


def _unsafe_call(call: ast.Call) -> str:
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in _EXECUTING_CALLS:
        return f"{name} executes data"
    if name == "torch.load" and given.get("weights_only") != "True":
        return "torch.load needs weights_only=True"
    if given.get("allow_pickle", "False") != "False":
        return "allow_pickle executes data"
    return "shell=True executes text" if given.get("shell", "False") != "False" else ""


def swallowed_errors(source: Source) -> list[str]:
    """Handlers that catch everything and do nothing."""
    broad = {"", "Exception", "BaseException"}
    return [
        source.at(node, "catches everything and says nothing")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler)
        and (ast.unparse(node.type) if node.type else "") in broad
        and all(isinstance(line, ast.Pass | ast.Continue | ast.Expr) for line in node.body)
        and not any(isinstance(line, ast.Call) for part in node.body for line in ast.walk(part))
    ]


# Words.


def undocumented(source: Source) -> list[str]:
    """Public modules, classes, functions and methods without a docstring or full annotations."""
    silent = source.text.strip() and not ast.get_docstring(source.tree)
    found = [f"{source.path}: has no docstring"] if silent else []
    return found + list(_undocumented(source, source.tree))


def _undocumented(source: Source, parent: ast.Module | ast.ClassDef) -> Iterator[str]:
    for node in parent.body:
        if not isinstance(node, Function | ast.ClassDef):
            continue
        dunder = node.name.startswith("__")
        if node.name.startswith("_") and not dunder:
            continue
        if not dunder and not ast.get_docstring(node):
            yield source.at(node, f"{node.name} has no docstring")
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(source, node)
        elif missing := _unannotated(node):
            yield source.at(node, f"{node.name} has no annotation of {', '.join(missing)}")


def _unannotated(function: Function) -> list[str]:
    parameters = function.args
    every = [*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs]
    every += [extra for extra in (parameters.vararg, parameters.kwarg) if extra]
    missing = [p.arg for p in every if p.annotation is None and p.arg not in ("self", "cls")]
    return missing if function.returns is not None else [*missing, "the result"]


def nameless_file(path: str) -> list[str]:
    """A file or folder named after nothing in particular."""
    vague = {"utils", "util", "misc", "helpers", "helper", "common", "tools", "stuff"}
    found = vague & set(path.removesuffix(".py").lower().split("/"))
    return [f"{path}: is called {name}; name what it is" for name in sorted(found)]


def shadowing_file(path: str) -> list[str]:
    """A script with the name of a package: its folder comes first on sys.path when it runs."""
    taken = {*importlib.metadata.packages_distributions(), *sys.stdlib_module_names, "auxdist"}
    name = Path(path).stem
    return [f"{path}: shadows the package {name}; rename it"] if name in taken else []


_LEFTOVERS = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
_OWN_PATH = re.compile(r"(?<![\w.}])/(?:home/(?!me/)|root/|Users/|work/)")


def leftovers(path: str, text: str) -> list[str]:
    """Notes of unfinished work, and paths of the machine where somebody wrote the file."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if match := _LEFTOVERS.search(line) or _OWN_PATH.search(line):
            found.append(f"{path}:{number}: {match[0]!r} does not belong here")
    return found
