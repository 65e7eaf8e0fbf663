"""Capture, mending: the expressions of rewritten functions whose operands can depend on data.

Every function acts as the plain operator on plain values. Names of arguments follow the `operator` module.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from gaudicc.capture.mend.context import Access, Context, Kind, active
from gaudicc.capture.mend.control import choose
from gaudicc.capture.mend.internals import is_data_dependent, known_true
from gaudicc.capture.mend.merge import is_number
from gaudicc.capture.mend.outcomes import here, refuse_if_caught
from gaudicc.capture.mend.partial import operate
from gaudicc.capture.mend.size_tensors import with_known
from gaudicc.capture.mend.truth import fresh_test, truth
from gaudicc.capture.mend.values import Choice, Maybe, Undefined, distribute, refuse_partial

Thunk = Callable[[], Any]
_DIVISIONS = (operator.truediv, operator.floordiv, operator.mod)
_BITWISE = (operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift)
_IN_PLACE = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, operator.ifloordiv: operator.floordiv, operator.imod: operator.mod,
    operator.ipow: operator.pow, operator.iand: operator.and_, operator.ior: operator.or_, operator.ixor: operator.xor,
    operator.ilshift: operator.lshift, operator.irshift: operator.rshift,
}  # fmt: skip


def _symbolic(*values: Any) -> bool:
    """Whether the operands are all numbers and one depends on data."""
    return all(is_number(value) for value in values) and any(is_data_dependent(value) for value in values)


def _as_value(context: Context, decision: Any) -> Any:
    return context.numbers.read(decision) if isinstance(decision, torch.Tensor) else decision


def binary(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """An arithmetic operator; on numbers that depend on data with Python's own rules for division and floats."""
    context = active()
    if context is None or not _symbolic(left, right):
        return operate(function, left, right)
    numbers = context.numbers
    if function in _BITWISE:
        return numbers.read(function(*(numbers.tensor(value).to(torch.int64) for value in (left, right))))
    is_float = isinstance(left, (float, torch.SymFloat)) or isinstance(right, (float, torch.SymFloat))
    if function in _DIVISIONS and not (isinstance(right, (int, float)) and right):
        _refuse_zero(context, function, right, is_float)
        zero = numbers.tensor(right).eq(0)
        right = numbers.read(torch.where(zero, torch.ones_like(numbers.tensor(right)), numbers.tensor(right)))
    if not is_float and function is not operator.truediv:
        return function(*(_counted(context, value) for value in (left, right)))
    # torch simplifies symbolic floats like reals (a - b + b -> a); 0-d tensors keep every rounding.
    wide = [numbers.tensor(value).to(torch.float64) for value in (left, right)]
    function = torch.remainder if function is operator.mod else function
    return numbers.read(function(*wide))


def _counted(context: Context, value: Any) -> Any:
    """A number to compute with: a bool that depends on data counts as 0 or 1."""
    return (
        context.numbers.read(context.numbers.tensor(value).to(torch.int64))
        if isinstance(value, torch.SymBool)
        else value
    )


def _refuse_zero(context: Context, function: Callable[[Any, Any], Any], divisor: Any, is_float: bool) -> None:
    words = {operator.truediv: "division by zero", operator.floordiv: "integer division or modulo by zero"}
    message = words.get(function, "integer modulo by zero")
    if is_float:
        words = {operator.truediv: "float division by zero", operator.floordiv: "float floor division by zero"}
        message = words.get(function, "float modulo")
    fail(fresh_test(context.numbers.tensor(divisor).eq(0)), ZeroDivisionError(message))


def fail(test: torch.Tensor, error: Exception) -> None:
    """Raise where `test` holds: what eager Python raises inside a builtin, at the user's line."""
    context, decision = active(), truth(test)
    if not isinstance(decision, torch.Tensor) or context is None:
        if decision:
            raise error
        return
    refuse_if_caught(error, context.watch.boundary)
    with context.scope(Kind.BRANCH, decision):
        context.flag(error, here())


def inplace(function: Callable[[Any, Any], Any], target: Any, value: Any) -> Any:
    """An augmented assignment; returns the object to bind."""
    if is_number(target) and is_number(value):
        return binary(_IN_PLACE.get(function, function), target, value)
    return operate(function, target, value)


def compare(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """A comparison whose value is kept."""
    context = active()
    if context is None:
        return function(left, right)
    if not _symbolic(left, right):
        return operate(function, *with_known(context, left, right))
    return _as_value(context, _compare_numbers(context, function, left, right))


def test_compare(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """A comparison that only decides: it stays a tensor."""
    context = active()
    if context is not None and _symbolic(left, right):
        result = _compare_numbers(context, function, left, right)
    else:
        result = operate(function, *(with_known(context, left, right) if context else (left, right)))
    return fresh_test(result) if isinstance(result, torch.Tensor) else result


def _compare_numbers(context: Context, function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """A comparison of numbers: a bool where their ranges decide it, as of the length of a piece, else a 0-d tensor."""
    if isinstance(left, (int, torch.SymInt)) and isinstance(right, (int, torch.SymInt)):
        holds = function(left, right)
        if known_true(holds):
            return True
        if known_true(torch.sym_not(holds)):
            return False
    return function(context.numbers.tensor(left), context.numbers.tensor(right))


def bound(value: Any) -> Any:
    """The value of a variable that may not have been assigned on every path."""
    if isinstance(value, Undefined):
        value._fail()
    if isinstance(value, Choice) and _holds_undefined(value):
        return distribute(bound, (value,), {})
    return value


def _holds_undefined(value: Any) -> bool:
    if isinstance(value, Choice):
        return _holds_undefined(value._then) or _holds_undefined(value._orelse)
    return isinstance(value, Undefined)


def is_(left: Any, right: Any) -> Any:
    """`left is right`."""
    if isinstance(left, Maybe) or isinstance(right, Maybe):
        refuse_partial("`is`")
    if isinstance(left, Choice) or isinstance(right, Choice):
        return distribute(is_, (left, right), {})
    return left is right


def is_not(left: Any, right: Any) -> Any:
    """`left is not right`."""
    return not_(is_(left, right))


def not_(value: Any) -> Any:
    """`not value`, kept as a value."""
    context, decision = active(), truth(value)
    if context is None or not isinstance(decision, torch.Tensor):
        return not decision
    return context.numbers.read(context.predicates.negate(decision))


def test_not(value: Any) -> bool | torch.Tensor:
    """`not value`, only to decide."""
    context, decision = active(), truth(value)
    if context is None or not isinstance(decision, torch.Tensor):
        return not decision
    return fresh_test(context.predicates.negate(decision))


def all_of(access: Access | None, *thunks: Thunk) -> bool | torch.Tensor:
    """`a and b and ...`, only to decide; what Python would not evaluate runs under the predicate."""
    return _connect(access, thunks, stop=False)


def any_of(access: Access | None, *thunks: Thunk) -> bool | torch.Tensor:
    """`a or b or ...`, only to decide."""
    return _connect(access, thunks, stop=True)


def _connect(access: Access | None, thunks: tuple[Thunk, ...], *, stop: bool) -> bool | torch.Tensor:
    context = active()
    decision: bool | torch.Tensor = not stop
    for thunk in thunks:
        if not isinstance(decision, torch.Tensor) or context is None:
            decision = truth(thunk())
            if decision is stop:
                break
            continue
        settled = torch.full_like(decision, stop)
        run = lambda thunk=thunk, like=decision: _as_tensor(truth(thunk()), like)  # noqa: E731
        then, orelse = (lambda: settled, run) if stop else (run, lambda: settled)  # noqa: B023 - called at once
        decision = fresh_test(choose(context, decision, then, orelse, access))
    return decision


def _as_tensor(decision: bool | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return decision if isinstance(decision, torch.Tensor) else torch.full_like(like, decision)


def and_(access: Access | None, *thunks: Thunk) -> Any:
    """`a and b and ...`, whose value is kept."""
    return _last_evaluated(access, thunks, stop=False)


def or_(access: Access | None, *thunks: Thunk) -> Any:
    """`a or b or ...`, whose value is kept."""
    return _last_evaluated(access, thunks, stop=True)


def _last_evaluated(access: Access | None, thunks: tuple[Thunk, ...], *, stop: bool) -> Any:
    value = thunks[0]()
    if len(thunks) == 1:
        return value
    context, decision = active(), truth(value)
    if context is None or not isinstance(decision, torch.Tensor):
        return value if decision is stop else _last_evaluated(access, thunks[1:], stop=stop)
    rest = lambda: _last_evaluated(access, thunks[1:], stop=stop)  # noqa: E731
    return choose(context, decision, *((lambda: value, rest) if stop else (rest, lambda: value)), access)


def chain(access: Access | None, left: Any, *links: tuple[Callable[[Any, Any], Any], Thunk]) -> Any:
    """`a < b < c`: each operand is evaluated once, and only as far as Python would."""
    compared, right = links[0][0], links[0][1]()
    value = compared(left, right)
    if len(links) == 1:
        return value
    return and_(access, lambda: value, lambda: chain(access, right, *links[1:]))


def ifexp(access: Access | None, test: Any, then: Thunk, orelse: Thunk) -> Any:
    """`then if test else orelse`."""
    context, decision = active(), truth(test)
    if context is None or not isinstance(decision, torch.Tensor):
        return then() if decision else orelse()
    return choose(context, decision, then, orelse, access)
