"""Capture, mending: Python's builtins on values that depend on data."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gaudicc.capture.mend.containers import positions
from gaudicc.capture.mend.context import Context, active
from gaudicc.capture.mend.control import choose, given
from gaudicc.capture.mend.internals import SYMBOLIC, is_data_dependent, is_fixed
from gaudicc.capture.mend.iteration import Enumerated, SymbolicRange, as_items, has_dynamic_rows, has_unknown_length
from gaudicc.capture.mend.merge import is_number
from gaudicc.capture.mend.operators import all_of, any_of, binary, fail
from gaudicc.capture.mend.partial import condition, on_each
from gaudicc.capture.mend.picking import max_, min_, reads
from gaudicc.capture.mend.pieces import zip_
from gaudicc.capture.mend.rows import length_of
from gaudicc.capture.mend.size_lists import SizeList
from gaudicc.capture.mend.size_numbers import float_of, int_of, is_real, log, of_sizes, sqrt_of
from gaudicc.capture.mend.trips import SizeRange
from gaudicc.capture.mend.truth import fresh_test, truth
from gaudicc.capture.mend.values import Choice, Maybe, Missing, Rows, by_key, distribute, holds_missing, refuse_partial

_SYMBOL_TYPES = {torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool}


def function(original: Any, owner: str, name: str) -> Any:
    """What a rewritten function calls in place of `original`: a helper for a builtin, otherwise `original` itself.

    Args:
        original: what the name means where it is called.
        owner: the module whose function the user most likely means, `builtins` or `math`.
        name: the name as it is written.
    """
    if active() is None or original is not getattr(_OWNERS[owner], name, None):
        return original
    return _HELPERS.get((owner, name), original)


def _context() -> Context:
    context = active()
    assert context is not None
    return context


def _scalar(value: Any) -> torch.Tensor:
    return value.reshape(()) if isinstance(value, torch.Tensor) else _context().numbers.tensor(value)


def int_(*args: Any) -> Any:
    """`int(x)`."""
    if len(args) == 1 and (isinstance(args[0], torch.SymInt) or is_real(args[0])):
        return int_of(args[0])
    if len(args) != 1 or not reads(args[0]):
        return distribute(int_, args, {}) if args and isinstance(args[0], Choice) else int(*args)
    value = _scalar(args[0])
    if value.is_floating_point():
        fail(fresh_test(value.isnan()), ValueError("cannot convert float NaN to integer"))
        fail(fresh_test(value.isinf()), OverflowError("cannot convert float infinity to integer"))
        value = torch.where(value.isfinite(), value, torch.zeros_like(value))
    return _context().numbers.read(value.to(torch.int64))


def float_(*args: Any) -> Any:
    """`float(x)`."""
    if len(args) == 1 and is_real(args[0]):
        return float_of(args[0])
    if len(args) != 1 or not reads(args[0]):
        return distribute(float_, args, {}) if args and isinstance(args[0], Choice) else float(*args)
    return _context().numbers.read(_scalar(args[0]).to(torch.float64))


def bool_(*args: Any) -> Any:
    """`bool(x)`."""
    decision = truth(args[0]) if args else False
    return _context().numbers.read(decision) if isinstance(decision, torch.Tensor) else decision


def len_(value: Any) -> Any:
    """`len(x)`: also of a list whose length depends on data, and of a tensor whose rows are as many as a size."""
    if isinstance(value, SizeList):
        return value.length
    if isinstance(value, Choice):
        return distribute(len_, (value,), {})
    if isinstance(value, dict) and condition(value) is not None:
        return on_each(_context(), value, lambda: len(value))
    if isinstance(value, list) and any(isinstance(item, Rows) for item in value):
        return length_of(value)
    if isinstance(value, list) and any(isinstance(item, Maybe) for item in value):
        return _context().numbers.read(positions(_context(), value)[1])
    if isinstance(value, torch.Tensor) and value.dim():
        return value.shape[0]
    return len(value)


def range_(*args: Any) -> Any:
    """`range(...)`."""
    numbers = [int_(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
    start, stop = (0, numbers[0]) if len(numbers) == 1 else numbers[:2]
    step = numbers[2] if len(numbers) == 3 else 1
    if not any(is_data_dependent(number) for number in numbers):
        plain = (is_fixed(start) and is_fixed(stop)) or not _context().keeps_loops
        return range(*args) if plain else SizeRange(start, stop, operator.index(step))
    return SymbolicRange(start, stop, operator.index(step))


def enumerate_(items: Any, start: int = 0) -> Any:
    """`enumerate(...)`."""
    long = has_unknown_length(items) or has_dynamic_rows(items)
    return Enumerated(items, start) if long else enumerate(items, start)


def list_(*args: Any) -> Any:
    """`list(...)`."""
    if args and isinstance(args[0], torch.Tensor) and has_unknown_length(args[0]):
        return as_items(_context(), args[0])
    if args and isinstance(args[0], (SizeRange, SizeList)):
        return SizeList(args[0].parts if isinstance(args[0], SizeList) else [args[0]])
    return list(*args)


def map_(call: Any, *items: Any) -> Any:
    """`map(...)`: a builtin maps what a call of it gives."""
    helpers = (helper for (owner, name), helper in _HELPERS.items() if getattr(_OWNERS[owner], name) is call)
    return map(next(helpers, call), *items)


def sum_(items: Any, start: Any = 0) -> Any:
    """`sum(...)`: items that may be absent are added where they are there."""
    if isinstance(items, torch.Tensor) and has_unknown_length(items):
        items = as_items(_context(), items)
    total = start
    for item in items:
        if isinstance(item, Maybe):
            total = choose(_context(), item.present, partial(operator.add, total, item.value), given(total), None)
        else:
            total = binary(operator.add, total, item)
    return total


def any_(items: Any) -> Any:
    """`any(...)`."""
    return bool_(any_of(None, *_tests(items, absent=False)))


def all_(items: Any) -> Any:
    """`all(...)`."""
    return bool_(all_of(None, *_tests(items, absent=True)))


def _tests(items: Any, *, absent: bool) -> list[Callable[[], Any]]:
    """One test per item; an item that is not there counts as `absent`."""

    def test(item: Any) -> Callable[[], Any]:
        if not isinstance(item, Maybe):
            return lambda: item
        otherwise = torch.full_like(item.present, absent)
        return lambda: choose(_context(), item.present, lambda: _scalar(bool_(item.value)), lambda: otherwise, None)

    return [test(item) for item in items]


def abs_(value: Any) -> Any:
    """`abs(x)`."""
    if is_number(value) and is_data_dependent(value):
        return _context().numbers.read(_context().numbers.tensor(value).abs())
    return abs(value)


def round_(value: Any, digits: int | None = None) -> Any:
    """`round(x)`, half to even, of one argument where it depends on data."""
    if digits is None and is_number(value) and is_data_dependent(value):
        return int_(_context().numbers.read(_context().numbers.tensor(value).round()))
    return round(value) if digits is None else round(value, digits)


def isinstance_(value: Any, kinds: Any) -> Any:
    """`isinstance(x, kinds)`: a symbolic number is what it stands for."""
    if isinstance(value, Choice):
        return distribute(isinstance_, (value, kinds), {})
    if isinstance(value, Maybe):
        refuse_partial("isinstance")
    if isinstance(value, SizeList):
        value = []
    if isinstance(value, SYMBOLIC) and not isinstance(value, kinds):
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        return any(issubclass(_SYMBOL_TYPES[type(value)], kind) for kind in kinds if isinstance(kind, type))
    return isinstance(value, kinds)


def hasattr_(owner: Any, name: str) -> Any:
    """`hasattr(x, name)`: also of an attribute that is set on some paths only."""
    if isinstance(name, Choice):
        return by_key(hasattr_, owner, key=name)
    if not hasattr(owner, name):
        return False
    value = getattr(owner, name)
    return distribute(lambda found: not isinstance(found, Missing), (value,), {}) if holds_missing(value) else True


def getattr_(owner: Any, name: str, *default: Any) -> Any:
    """`getattr(x, name)` and `getattr(x, name, default)`."""
    if isinstance(name, Choice):
        return by_key(lambda found: getattr_(owner, found, *default), key=name)
    value = getattr(owner, name, *default)
    if not default or not holds_missing(value):
        return value
    return distribute(lambda found: default[0] if isinstance(found, Missing) else found, (value,), {})


def type_(*args: Any) -> Any:
    """`type(x)`: of a symbolic number, of what it stands for."""
    if len(args) == 1 and isinstance(args[0], Choice):
        return distribute(type_, args, {})
    return _SYMBOL_TYPES.get(type(args[0]), type(args[0])) if len(args) == 1 else type(*args)


def divmod_(left: Any, right: Any) -> Any:
    """`divmod(a, b)`."""
    if is_number(left) and is_number(right) and (is_data_dependent(left) or is_data_dependent(right)):
        return binary(operator.floordiv, left, right), binary(operator.mod, left, right)
    return divmod(left, right)


def _of_float(plain: Callable[[float], Any], traced: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    """A function of `math` that is exact, and whose tensor form is exact too."""

    def apply(value: Any) -> Any:
        if not reads(value):
            return plain(value)
        result = _context().numbers.read(traced(_scalar(value).to(torch.float64)))
        return int_(result) if plain in (math.floor, math.ceil, math.trunc) else result

    return apply


def _sqrt(value: Any) -> Any:
    if is_real(value):
        return sqrt_of(value)
    if not reads(value):
        return math.sqrt(value)
    wide = _scalar(value).to(torch.float64)
    fail(fresh_test(wide < 0), ValueError("math domain error"))
    return _context().numbers.read(wide.sqrt())


_OWNERS = {"builtins": builtins, "math": math}
_HELPERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "int"): int_,
    ("builtins", "float"): float_,
    ("builtins", "bool"): bool_,
    ("builtins", "len"): len_,
    ("builtins", "range"): range_,
    ("builtins", "enumerate"): enumerate_,
    ("builtins", "list"): list_,
    ("builtins", "zip"): zip_,
    ("builtins", "map"): map_,
    ("builtins", "sum"): sum_,
    ("builtins", "any"): any_,
    ("builtins", "all"): all_,
    ("builtins", "min"): min_,
    ("builtins", "max"): max_,
    ("builtins", "abs"): abs_,
    ("builtins", "round"): round_,
    ("builtins", "isinstance"): isinstance_,
    ("builtins", "type"): type_,
    ("builtins", "hasattr"): hasattr_,
    ("builtins", "getattr"): getattr_,
    ("builtins", "divmod"): divmod_,
    ("math", "sqrt"): _sqrt,
    ("math", "log"): of_sizes(math.log, log),
    **{
        ("math", name): of_sizes(getattr(math, name))
        for name in ("log2", "log10", "log1p", "exp", "sin", "cos", "tanh")
    },
    ("math", "floor"): _of_float(math.floor, torch.floor),
    ("math", "ceil"): _of_float(math.ceil, torch.ceil),
    ("math", "trunc"): _of_float(math.trunc, torch.trunc),
    ("math", "isnan"): _of_float(math.isnan, torch.isnan),
    ("math", "isinf"): _of_float(math.isinf, torch.isinf),
    ("math", "isfinite"): _of_float(math.isfinite, torch.isfinite),
}
