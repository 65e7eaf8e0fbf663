"""Bundle: how arguments and outputs are nested (pytree specs) <-> JSON.

Tuples, lists and dicts come back as they are. Classes are named, never imported: a named class is used if this process
has it already and knows it as a pytree node; otherwise a `Record` with the same field names takes its place.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, namedtuple
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree

from gaudicc.bundle import literals
from gaudicc.bundle.item import Item

MAX_DEPTH = 64
LEAF = "leaf"

_SEQUENCES: dict[str, Any] = {"tuple": tuple, "list": list}
_DICTS: dict[str, Any] = {"dict": dict, "ordered_dict": OrderedDict}


@dataclass(frozen=True)
class Origin:
    """The class that a `Record` stands for.

    Attributes:
        kind: `namedtuple` or `class`.
        name: its qualified name.
        context: what its own pytree node keeps.
        count: how many fields have values.
    """

    kind: str
    name: str
    context: Any
    count: int

    def fields(self) -> tuple[list[str], list[str]]:
        """The fields with values, and those that are None.

        Pytree nodes of known classes keep the names of their fields, or a pair of the names of both kinds.
        """
        pair = isinstance(self.context, (list, tuple)) and len(self.context) == 2
        for names, absent in ((self.context, []), tuple(self.context) if pair else (None, None)):
            if _are_names(names) and _are_names(absent) and len(names) == self.count:
                return list(names), list(absent)
        return [str(i) for i in range(self.count)], []


def _are_names(value: Any) -> bool:
    texts = isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
    return texts and len(set(value)) == len(value)


class Record(dict[str, Any]):
    """A dict with attribute access, in the place of a class that this process does not have.

    Args:
        origin: the class it stands for.
        values: the values of its fields.
    """

    def __init__(self, origin: Origin, values: Iterable[Any]) -> None:
        names, absent = origin.fields()
        super().__init__({**dict.fromkeys(absent), **dict(zip(names, values, strict=True))})
        vars(self)["origin"] = origin

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"this output has no field {name!r}, only {', '.join(self)}")


def _flatten(record: Record) -> tuple[list[Any], Origin]:
    origin: Origin = vars(record)["origin"]
    return [record[name] for name in origin.fields()[0]], origin


def _unflatten(values: Iterable[Any], origin: Origin) -> Record:
    return Record(origin, values)


pytree.register_pytree_node(Record, _flatten, _unflatten, serialized_type_name="gaudicc.bundle.Record")


def encode(spec: pytree.TreeSpec) -> object:
    """A pytree spec as JSON.

    Raises:
        TypeError: a node's keys or context hold what no bundle can hold.
    """
    if spec.is_leaf():
        return LEAF
    children = [encode(child) for child in _children(spec)]
    for word, kind in _SEQUENCES.items():
        if spec.type is kind:
            return {word: children}
    for word, kind in _DICTS.items():
        if spec.type is kind:
            return {word: [[literals.encode(key), child] for key, child in zip(spec.context, children, strict=True)]}
    if spec.type is Record:
        word, origin, context = spec.context.kind, spec.context.name, spec.context.context
    elif spec.type is namedtuple:
        word, origin, context = "namedtuple", _qualified(spec.context), list(spec.context._fields)
    else:
        word, origin, context = "class", _qualified(spec.type), spec.context
    return {word: {"name": origin, "context": literals.encode(context), "children": children}}


def _children(spec: pytree.TreeSpec) -> Sequence[pytree.TreeSpec]:
    # Older torch has the attribute only; newer torch warns about it.
    return spec.children() if hasattr(spec, "children") else spec.children_specs


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def decode(item: Item, depth: int = 0) -> pytree.TreeSpec:
    """A pytree spec from JSON.

    Raises:
        BundleError: the JSON is no spec.
    """
    if depth > MAX_DEPTH:
        item.fail(f"values are nested more than {MAX_DEPTH} deep")
    if item.value == LEAF:
        return pytree.tree_structure(0)
    fields = item.fields((), (*_SEQUENCES, *_DICTS, "namedtuple", "class"))
    if len(fields) != 1:
        item.fail("a spec is `leaf` or an object with one field")
    (word, content), *_ = fields.items()
    if word in _SEQUENCES:
        return pytree.TreeSpec(_SEQUENCES[word], None, [decode(child, depth + 1) for child in content.items()])
    if word in _DICTS:
        return _dict(_DICTS[word], content, depth + 1)
    parts = content.fields(("name", "context", "children"))
    name, context = parts["name"].text(), literals.decode(parts["context"])
    children = [decode(child, depth + 1) for child in parts["children"].items()]
    found = _namedtuple(name, context) if word == "namedtuple" else _registered(name)
    if found is None:
        return pytree.TreeSpec(Record, Origin(word, name, context, len(children)), children)
    if word == "namedtuple":
        if len(children) != len(context):
            content.fail(f"{name} has {len(context)} fields, found {len(children)} values")
        return pytree.TreeSpec(namedtuple, found, children)
    return pytree.TreeSpec(found, context, children)


def _dict(kind: Any, content: Item, depth: int) -> pytree.TreeSpec:
    pairs = [pair.items(2) for pair in content.items()]
    keys = [literals.decode(key) for key, _ in pairs]
    if not all(isinstance(key, (str, int, float, bool, type(None))) for key in keys) or len(set(keys)) != len(keys):
        content.fail("the keys of a dict are distinct numbers and strings")
    return pytree.TreeSpec(kind, keys, [decode(child, depth) for _, child in pairs])


def _registered(name: str) -> Any:
    """The pytree node of this process with that name, or None. Nothing is looked up by attribute: that can import."""
    return next((kind for kind in pytree.SUPPORTED_NODES if isinstance(kind, type) and _qualified(kind) == name), None)


def _namedtuple(name: str, fields: Any) -> Any:
    module, _, attribute = name.rpartition(".")
    kind = vars(sys.modules[module]).get(attribute) if module in sys.modules else None
    is_tuple = isinstance(kind, type) and issubclass(kind, tuple)
    return kind if is_tuple and list(getattr(kind, "_fields", ())) == fields else None
