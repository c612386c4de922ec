"""The value of a YAML node, as the type of a dataclass field wants it.

YAML 1.1 alone reads `off` as False, `1e-3` as text, `010` as 8 and `24:00` as 1440. Here the field
decides: `off` for a Literal is the text "off", and a number is what Python reads as one.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from typing import Any, Literal, get_args, get_origin

import yaml
from yaml.nodes import Node, ScalarNode, SequenceNode

TAG = "tag:yaml.org,2002:"
"""How the tags of YAML's own types begin."""

_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_NUMBER = re.compile(r"[-+]?(\d[\d_]*)?(\.\d*)?([eE][-+]?\d+)?")


class UnfitError(Exception):
    """A node that is not what a field expects."""

    def __init__(self, node: Node, expected: str) -> None:
        super().__init__(expected)
        self.node = node
        self.expected = expected


def convert(hint: Any, node: Node) -> Any:
    """The value of a node as the type `hint`.

    `hint` is str, bool, int, float, a Literal, tuple[one of these, ...], or any of these | None.

    Raises:
        UnfitError: the node does not fit.
    """
    if get_origin(hint) is types.UnionType:
        if is_null(node):
            return None
        return convert(next(h for h in get_args(hint) if h is not type(None)), node)
    if get_origin(hint) is tuple:
        if not isinstance(node, SequenceNode):
            raise UnfitError(node, f"a list, such as {_EXAMPLES[get_args(hint)[0]]}")
        return tuple(convert(get_args(hint)[0], item) for item in node.value)
    if not isinstance(node, ScalarNode) or node.tag.startswith((f"{TAG}python", "!")):
        raise UnfitError(node, "one plain value")
    if get_origin(hint) is Literal:
        return _option(get_args(hint), node)
    return _SCALARS[hint](node)


_EXAMPLES = {float: "[0.5, 1.0]", str: "[one, two]", int: "[1, 2]"}


def _option(options: tuple[Any, ...], node: ScalarNode) -> Any:
    for option in options:
        if node.value == str(option):
            return option
    names = [str(option) for option in options]
    near = difflib.get_close_matches(node.value, names, 1)
    expected = f"one of {', '.join(names)}"
    raise UnfitError(node, f"{near[0]} ({expected})" if near else expected)


def _text(node: ScalarNode) -> str:
    if is_null(node):
        raise UnfitError(node, 'text; "" is the empty text')
    return str(node.value)


def _truth(node: ScalarNode) -> bool:
    if node.tag != f"{TAG}bool":
        raise UnfitError(node, "true or false")
    return bool(yaml.SafeLoader.bool_values[node.value.lower()])


def _whole(node: ScalarNode) -> int:
    if not _is_bare(node) or not _WHOLE.fullmatch(node.value):
        raise UnfitError(node, "a whole number in digits, such as 4")
    return int(node.value)


def _number(node: ScalarNode) -> float:
    text = node.value
    fits = _is_bare(node) and _NUMBER.fullmatch(text) and any(c.isdigit() for c in text)
    try:
        value = float(text) if fits else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UnfitError(node, "a finite number, such as 0.5 or 7e-4")
    return value


_SCALARS: dict[Any, Any] = {str: _text, bool: _truth, int: _whole, float: _number}


def _is_bare(node: ScalarNode) -> bool:
    """True for a scalar without quotes."""
    return node.style is None


def is_null(node: Node) -> bool:
    """True for null, ~ and nothing at all; the quoted "null" is text."""
    return bool(node.tag == f"{TAG}null")
