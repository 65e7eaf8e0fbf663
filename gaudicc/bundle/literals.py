"""Bundle: arguments of calls <-> JSON. A closed set of types; what is not in it can neither be saved nor loaded.

None, truth values, integers, finite floats, strings and lists stand for themselves; everything else is an object with
one field that names its type: `{"node": "add_1"}`, `{"dtype": "float32"}`, `{"slice": [0, null, 2]}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from gaudicc.bundle.item import Item

MAX_DEPTH = 16
DEVICES = ("cpu", "cuda", "hpu", "meta")

_KINDS: Mapping[str, type] = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
CONSTANTS: Mapping[str, Mapping[str, Any]] = {
    kind: {
        name: value for name, value in vars(torch).items() if isinstance(value, of) and str(value) == f"torch.{name}"
    }
    for kind, of in _KINDS.items()
}
DTYPES: Mapping[str, torch.dtype] = CONSTANTS["dtype"]


def encode(value: Any) -> object:
    """An argument as JSON.

    Raises:
        TypeError: the value is of a type that no bundle holds.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, list):
        return [encode(item) for item in value]
    return {(pair := _tagged(value))[0]: pair[1]}


def _tagged(value: Any) -> tuple[str, object]:
    if isinstance(value, tuple):
        return "tuple", [encode(item) for item in value]
    if isinstance(value, slice):
        return "slice", [encode(part) for part in (value.start, value.stop, value.step)]
    if type(value) is float:
        return "float", str(value)
    if type(value) is complex:
        return "complex", [encode(value.real), encode(value.imag)]
    if isinstance(value, torch.device):
        return "device", str(value)
    for kind, of in _KINDS.items():
        if isinstance(value, of):
            return kind, str(value).removeprefix("torch.")
    raise TypeError(f"{value!r:.80} is a {type(value).__name__}, which no bundle holds")


def decode(item: Item, nodes: Mapping[str, fx.Node] | None = None, depth: int = 0) -> Any:
    """An argument from JSON.

    Args:
        item: the JSON.
        nodes: the nodes that it may refer to, by name.
        depth: how deep in other arguments it stands.

    Raises:
        BundleError: the JSON is no argument, or it refers to a node that is not there.
    """
    if depth > MAX_DEPTH:
        item.fail(f"arguments are nested more than {MAX_DEPTH} deep")
    value = item.value
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, str):
        return item.text()
    if isinstance(value, int):
        return item.integer(-(2**64))
    if isinstance(value, list):
        return [decode(entry, nodes, depth + 1) for entry in item.items()]
    entries = item.entries()
    if len(entries) != 1:
        item.fail("an argument is an object with one field that names its type")
    (kind, content), *_ = entries.items()
    if kind not in _DECODERS:
        item.fail(f"unknown type of argument {kind[:80]!r}")
    return _DECODERS[kind](content, nodes or {}, depth + 1)


def _node(item: Item, nodes: Mapping[str, fx.Node], depth: int) -> fx.Node:
    name = item.text()
    if name not in nodes:
        item.fail(f"there is no node {name[:80]!r} before this one")
    return nodes[name]


def _tuple(item: Item, nodes: Mapping[str, fx.Node], depth: int) -> tuple[Any, ...]:
    return tuple(decode(entry, nodes, depth) for entry in item.items())


def _slice(item: Item, nodes: Mapping[str, fx.Node], depth: int) -> slice:
    start, stop, step = (decode(entry, nodes, depth) for entry in item.items(3))
    return slice(start, stop, step)


def _float(item: Item, nodes: Mapping[str, fx.Node], depth: int) -> float:
    return float(item.choice(("inf", "-inf", "nan"), "float"))


def _complex(item: Item, nodes: Mapping[str, fx.Node], depth: int) -> complex:
    real, imag = (decode(entry, {}, depth) for entry in item.items(2))
    if not all(type(part) in (int, float) for part in (real, imag)):
        item.fail("a complex number has two real parts")
    return complex(real, imag)


def device_of(item: Item) -> torch.device:
    """A device: a known kind, with or without an index.

    Raises:
        BundleError: anything else.
    """
    kind, _, number = item.text().partition(":")
    if kind not in DEVICES or not (number == "" or (number.isascii() and number.isdigit() and len(number) < 4)):
        item.fail(f"unknown device {item.text()[:80]!r}")
    return torch.device(kind, int(number)) if number else torch.device(kind)


def _device(item: Item, nodes: Mapping[str, fx.Node], depth: int) -> torch.device:
    return device_of(item)


def _constant(kind: str) -> Callable[[Item, Mapping[str, fx.Node], int], Any]:
    return lambda item, nodes, depth: CONSTANTS[kind][item.choice(CONSTANTS[kind], kind)]


_DECODERS: Mapping[str, Callable[[Item, Mapping[str, fx.Node], int], Any]] = {
    "node": _node,
    "tuple": _tuple,
    "slice": _slice,
    "float": _float,
    "complex": _complex,
    "device": _device,
    **{kind: _constant(kind) for kind in _KINDS},
}
