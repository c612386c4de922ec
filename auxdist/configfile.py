"""Config <-> YAML: files, one level of `base:`, `--set key=value`; every problem has its place.

The YAML is only composed to nodes, never constructed: the types of the dataclass fields say what a
scalar means (see yamlvalue.py).
"""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from auxdist.config import METHOD_AFFINITY, Config
from auxdist.errors import ConfigError
from auxdist.yamlvalue import TAG, UnfitError, convert, is_null


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file, its base, and `key=value` overrides, the later over the earlier.

    Raises:
        ConfigError: with all problems, each beginning with its file and line or its --set.
    """
    reader = _Reader()
    config = reader.config([*reader.file(Path(path)), *reader.overrides(overrides)])
    reader.finish()
    return config


def config_from_mapping(mapping: Mapping[str, Any], name: str = "configuration") -> Config:
    """A Config from nested plain values, as `yaml.safe_load` gives them; `name` begins problems.

    Raises:
        ConfigError: with all problems.
    """
    reader = _Reader()
    root = yaml.SafeDumper(io.StringIO()).represent_data(dict(mapping))
    config = reader.config([_Layer(name, root)])
    reader.finish()
    return config


def dump_config(config: Config) -> str:
    """The whole configuration as YAML; `load_config` reads an equal one back."""
    return yaml.dump(
        _plain(asdict(config)), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20
    )


def located(problems: Sequence[str], path: Path | str, overrides: Sequence[str] = ()) -> list[str]:
    """The problems of `validate`, each with the file and line that states its key, if one does."""
    reader = _Reader()
    reader.config([*reader.file(Path(path)), *reader.overrides(overrides)])
    places = {problem: reader.places.get(problem.split(" ", 1)[0]) for problem in problems}
    return [f"{place}: {problem}" if place else problem for problem, place in places.items()]


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class _Layer:
    """A part of one source: the file or override that states it, and the YAML node.

    `key` is the node of the key that the part belongs to, where it has one.
    """

    source: str
    node: Node
    key: Node | None = None

    @property
    def where(self) -> str:
        mark = (self.key or self.node).start_mark
        return self.source if mark is None else f"{self.source}:{mark.line + 1}"

    def at(self, node: Node, key: Node | None = None) -> _Layer:
        return _Layer(self.source, node, key)


class _Reader:
    """Turns layers of YAML nodes into a Config; collects problems instead of stopping at one."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.places: dict[str, str] = {}

    def finish(self) -> None:
        if self.problems:
            raise ConfigError(self.problems)

    # Sources: a file, its base, overrides.

    def file(self, path: Path) -> list[_Layer]:
        """The layers of a file: its base, if it names one, and itself."""
        layer = self._compose(path)
        if layer is None:
            return []
        bases, own = _split_base(layer)
        if not bases:
            return [own]
        base = bases[0]
        if len(bases) > 1:
            self.problems.append(f"{bases[1].where}: base is given twice; keep one of the two.")
        if not isinstance(base.node, ScalarNode) or base.node.tag != f"{TAG}str":
            self._problem(base, "base", "the path of one YAML file, relative to this file")
            return [own]
        parent = self._compose(path.parent / base.node.value, base.where)
        if parent is None:
            return [own]
        grandparents, parent = _split_base(parent)
        if grandparents:
            self.problems.append(
                f"{grandparents[0].where}: base: this file is itself the base of {path}, and a "
                "base may not have a base; move the keys of one into the other."
            )
        return [parent, own]

    def _compose(self, path: Path, named_at: str | None = None) -> _Layer | None:
        try:
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except OSError as error:
            start = f"{named_at}: base {path}" if named_at else f"{path}"
            self.problems.append(
                f"{start}: cannot be read ({error.strerror}); give the path of a YAML file."
            )
            return None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            self.problems.append(_not_yaml(str(path), error))
            return None
        if root is None:
            return None
        layer = _Layer(str(path), root)
        if not isinstance(root, MappingNode):
            self._problem(layer, "the file", "a mapping of sections, such as `train: {rounds: 4}`")
            return None
        return layer

    def overrides(self, overrides: Sequence[str]) -> Iterator[_Layer]:
        """One layer for each `key=value`."""
        for text in overrides:
            key, equals, value = text.partition("=")
            key = key.strip()
            if not equals or not all(key.split(".")):
                self.problems.append(
                    f"--set {text}: is not key=value; write e.g. --set train.rounds=2."
                )
                continue
            try:
                node = yaml.compose(value, Loader=yaml.SafeLoader)
            except yaml.YAMLError as error:
                self.problems.append(_not_yaml(f"--set {key}", error, numbered=False))
                continue
            if value[node.end_mark.index if node else 0 :].strip():
                self.problems.append(
                    f"--set {text}: # begins a comment in YAML; quote the value, e.g. "
                    f"--set '{key}=\"a #1\"'."
                )
                continue
            yield _Layer(f"--set {key}", _nest(key.split("."), node))

    # Sections and values.

    def config(self, layers: Sequence[_Layer]) -> Config:
        """The Config that the layers state, over the defaults of its method."""
        trial = _Reader()
        method = trial._section(Config(), list(layers), "").model.method
        defaults = Config()
        preset = replace(defaults.model, affinity=METHOD_AFFINITY[method])
        config: Config = self._section(replace(defaults, model=preset), list(layers), "")
        return config

    def _section(self, default: Any, layers: list[_Layer], prefix: str) -> Any:
        """`default`, a dataclass, with every field that the layers state."""
        stated: dict[str, list[_Layer]] = {}
        hints = get_type_hints(type(default))
        for layer in layers:
            for key, value in self._entries(layer, prefix.rstrip(".")):
                if key in hints:
                    stated.setdefault(key, []).append(value)
                else:
                    self._unknown(value.where, prefix, key, list(hints))
        changes = {
            key: self._value(hints[key], values, getattr(default, key), prefix + key)
            for key, values in stated.items()
        }
        return replace(default, **changes)

    def _entries(self, layer: _Layer, key: str) -> Iterator[tuple[str, _Layer]]:
        """Keys and values of a mapping, placed at their keys; an empty section states nothing."""
        if is_null(layer.node):
            return
        if not isinstance(layer.node, MappingNode):
            self._problem(layer, key, "a section with keys of its own")
            return
        seen: set[str] = set()
        for name, value in layer.node.value:
            place = layer.at(name).where
            if not isinstance(name, ScalarNode):
                section = key or "the file"
                self.problems.append(f"{place}: a key of {section} is not text; write text.")
                continue
            dotted = f"{key}.{name.value}".lstrip(".")
            if name.value in seen:
                self.problems.append(f"{place}: {dotted} is given twice; keep one of the two.")
            seen.add(name.value)
            yield name.value, layer.at(value, name)

    def _value(self, hint: Any, layers: list[_Layer], default: Any, key: str) -> Any:
        if is_dataclass(hint):
            return self._section(default, layers, f"{key}.")
        last = layers[-1]
        self.places[key] = last.where
        if get_origin(hint) is dict:
            return self._texts(layers, key)
        try:
            return convert(hint, last.node)
        except UnfitError as error:
            place = last if error.node is last.node else last.at(error.node)
            self._problem(place, key, error.expected)
            return default

    def _texts(self, layers: list[_Layer], key: str) -> dict[str, str]:
        """A dict[str, str]: later layers add to earlier ones."""
        found: dict[str, str] = {}
        for layer in layers:
            for name, value in self._entries(layer, key):
                try:
                    found[name] = convert(str, value.node)
                except UnfitError as error:
                    self._problem(value, f"{key}.{name}", error.expected)
        return found

    # Problems.

    def _problem(self, layer: _Layer, key: str, expected: str) -> None:
        self.problems.append(f"{layer.where}: {key} is {_shown(layer.node)}; write {expected}.")

    def _unknown(self, where: str, prefix: str, key: str, valid: list[str]) -> None:
        everywhere = list(_dotted(Config))
        near = difflib.get_close_matches(key, valid, 1)
        if not near:
            leaves = difflib.get_close_matches(key, [_leaf(name) for name in everywhere], 1, 0.8)
            near = [name for name in everywhere if _leaf(name) in leaves]
        hint = f"did you mean {' or '.join(near)}?" if near else f"use one of: {', '.join(valid)}."
        self.problems.append(f"{where}: {prefix}{key} is not a key; {hint}")


def _split_base(layer: _Layer) -> tuple[list[_Layer], _Layer]:
    """The values of `base` (none, one, or by mistake several), and the layer without them."""
    node = layer.node
    bases = [layer.at(value, key) for key, value in node.value if key.value == "base"]
    rest = [(key, value) for key, value in node.value if key.value != "base"]
    return bases, layer.at(MappingNode(node.tag, rest, node.start_mark, node.end_mark))


def _nest(keys: list[str], node: Node | None) -> Node:
    """`a.b=value` as the mapping {a: {b: value}}, without line numbers."""
    node = ScalarNode(f"{TAG}null", "") if node is None else node
    _forget_marks(node)
    for key in reversed(keys):
        node = MappingNode(f"{TAG}map", [(ScalarNode(f"{TAG}str", key), node)])
    return node


def _forget_marks(node: Node) -> None:
    if node.start_mark is None:
        return
    node.start_mark = None
    if isinstance(node, MappingNode):
        for name, value in node.value:
            _forget_marks(name)
            _forget_marks(value)
    elif isinstance(node, SequenceNode):
        for item in node.value:
            _forget_marks(item)


def _shown(node: Node) -> str:
    if isinstance(node, ScalarNode):
        return json.dumps(node.value, ensure_ascii=False) if node.value else "empty"
    return "a mapping" if isinstance(node, MappingNode) else "a list"


def _not_yaml(source: str, error: Exception, numbered: bool = True) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{source}:{mark.line + 1}" if mark and numbered else source
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    return f"{place}: is not YAML ({reason}); mend it there or put the text in quotes."


def _leaf(dotted: str) -> str:
    return dotted.rsplit(".", 1)[-1]


def _dotted(section: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys below a section."""
    hints = get_type_hints(section)
    for entry in fields(section):
        if is_dataclass(hints[entry.name]):
            yield from _dotted(hints[entry.name], f"{prefix}{entry.name}.")
        yield prefix + entry.name
