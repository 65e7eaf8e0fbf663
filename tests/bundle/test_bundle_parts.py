"""The parts of a bundle alone: sizes, structures, literals, and the allow-list."""

import enum
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from gaudicc.bundle import Record, literals, trees
from gaudicc.bundle.allowed import ATEN, FUNCTIONS, name_of, resolve
from gaudicc.bundle.item import Item, parse, render
from gaudicc.bundle.sizes import SizeReader, SizeWriter
from gaudicc.errors import BundleError

SYMBOL = {"low": 1, "high": 64, "hint": 8, "positive": True, "size_like": False}


class Letter(enum.Enum):
    A = 1


Point = namedtuple("Point", ["x", "y"])


def item(value: object) -> Item:
    return parse(render(value), "test: ")


def reader() -> SizeReader:
    unbacked = {**SYMBOL, "low": 0, "hint": None, "positive": False, "size_like": True}
    return SizeReader(item({"s0": SYMBOL, "s7": {**SYMBOL, "hint": 5}, "u3": unbacked}))


DIVISORS = st.sampled_from(["s0", "s7"]) | st.integers(1, 9).map(str)
# A divisor that may be zero is refused, like any expression that cannot be evaluated.
SIZES = st.recursive(
    st.sampled_from(["s0", "s7", "u3"]) | st.integers(1, 9).map(str),
    lambda inner: (
        st.builds(str.format, st.sampled_from(["({} + {})", "{}*{}", "max({}, {})", "min({}, {})"]), inner, inner)
        | st.builds(str.format, st.sampled_from(["floor_div({}, {})", "python_mod({}, {})"]), inner, DIVISORS)
    ),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(text=SIZES)
def test_sizes_round_trip(text: str) -> None:
    size = reader().size(item(text))
    writer = SizeWriter()
    saved = writer.size(size)
    again = SizeReader(item(writer.symbols)).size(item(saved))
    assert str(again) == str(size)
    assert SizeWriter().size(again) == saved


def test_symbols_keep_range_hint_and_numbering() -> None:
    sizes = reader()
    size = sizes.size(item("s0*2"))
    assert isinstance(size, torch.SymInt)
    assert (size < 200) is True or bool(size < 200)
    assert size.node.hint == 16
    assert str(sizes.env.create_unbacked_symint()) == "u4"


def test_coincident_hints_do_not_unify_symbols() -> None:
    from gaudicc.bundle import values

    sizes = SizeReader(item({"s0": SYMBOL, "s7": SYMBOL}))
    both = {"dtype": "float32", "shape": ["s0", "s7"], "stride": ["s7", 1]}
    assert [str(size) for size in values.decode(item(both), sizes).shape] == ["s0", "s7"]
    assert [str(size) for size in values.decode(item(both), sizes).shape] == ["s0", "s7"]


def test_a_size_outside_the_grammar_cannot_be_saved() -> None:
    sizes = reader()
    strange = sizes.env.create_symintnode(sympy.factorial(sizes.symbols["s0"]), hint=None)
    with pytest.raises(TypeError, match="factorial"):
        SizeWriter().size(strange)


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False)
    | st.text("ab \n\t", max_size=5) | st.sampled_from([torch.float32, torch.strided, torch.preserve_format])
    | st.sampled_from([torch.device("hpu:1"), slice(0, None, 2), 1j]),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)  # fmt: skip


@given(value=LITERALS)
def test_literals_round_trip(value: Any) -> None:
    assert repr(literals.decode(item(literals.encode(value)))) == repr(value)


@pytest.mark.parametrize("value", [object(), print, torch.zeros(1), {"a": 1}, Letter.A, b"x", int])
def test_other_literals_cannot_be_saved(value: object) -> None:
    with pytest.raises(TypeError, match="no bundle holds"):
        literals.encode(value)


TREES = st.recursive(
    st.just(0),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(["a", "b", 3]), inner, max_size=3),
        st.dictionaries(st.sampled_from("ab"), inner, max_size=3).map(OrderedDict),
        st.builds(Point, inner, inner),
    ),
    max_leaves=8,
)


@given(tree=TREES)
def test_structures_round_trip(tree: Any) -> None:
    spec = pytree.tree_structure(tree)
    assert trees.decode(item(trees.encode(spec))) == spec


def test_a_class_that_is_not_here_becomes_a_record_and_is_saved_as_itself() -> None:
    for word, context in (("class", ["x", "y"]), ("namedtuple", ["x", "y"]), ("class", [["x", "y"], ["z"]])):
        saved = {word: {"name": "nowhere.Output", "context": context, "children": ["leaf", {"tuple": ["leaf"]}]}}
        spec = trees.decode(item(saved))
        output = pytree.tree_unflatten([1, 2], spec)
        assert isinstance(output, Record)
        assert (output.x, output.y) == (1, (2,))
        assert trees.encode(spec) == saved


def test_a_module_is_never_imported_for_a_class() -> None:
    import sys

    absent = "antigravity"
    assert absent not in sys.modules
    trees.decode(item({"class": {"name": f"{absent}.geohash", "context": None, "children": []}}))
    trees.decode(item({"namedtuple": {"name": f"{absent}.geohash", "context": ["a"], "children": ["leaf"]}}))
    assert absent not in sys.modules


def test_the_allow_list_names_functional_ops_of_this_torch() -> None:
    for name in sorted(ATEN):
        packet = getattr(torch.ops.aten, name)
        functional = [o for o in packet.overloads() if not getattr(packet, o)._schema.is_mutable]
        assert functional, f"aten.{name} has no functional overload"
        op = getattr(packet, functional[0])
        assert resolve(item(name_of(op))) is op
    for name, function in FUNCTIONS.items():
        assert resolve(item(name)) is function


@pytest.mark.parametrize("name", ["from_file", "save", "_print", "set", "resize", "manual_seed", "warn", "backward"])
def test_what_touches_files_or_the_process_is_not_on_the_list(name: str) -> None:
    assert name not in ATEN
    with pytest.raises(BundleError, match="allow-list"):
        resolve(item(f"aten.{name}.default"))


def test_strings_of_the_list_take_no_file_names() -> None:
    """No op on the list has a parameter that its schema calls a file, path or name."""
    for name in ATEN:
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            arguments = {a.name for a in getattr(packet, overload)._schema.arguments if "str" in str(a.type)}
            assert not arguments & {"filename", "path", "file", "name"}, f"{name}.{overload}"
