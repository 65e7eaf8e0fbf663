"""Capture, mending: one value or state out of the two that the sides of a branch left."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gaudicc.capture.mend.context import Access, Context, Exit, State
from gaudicc.capture.mend.heap import Heap, contents, plainly_held, reachable, refill, same_contents
from gaudicc.capture.mend.internals import SYMBOLIC, known_true, same_sizes
from gaudicc.capture.mend.marks import refuse, refuse_changes
from gaudicc.capture.mend.numbers import KINDS
from gaudicc.capture.mend.values import Choice, Maybe, Missing, Undefined, describe, is_undecided
from gaudicc.errors import DynamicControlFlowError

_PLAIN = (str, bytes, type(None), torch.dtype, torch.device, type, complex)


def merge(context: Context, pred: torch.Tensor, then: Any, orelse: Any) -> Any:
    """The value that is `then` where `pred` holds and `orelse` elsewhere.

    Tensors of one shape and dtype become a `where`, numbers a symbolic number, containers of one structure are merged
    item by item, lists of different lengths get conditional elements. Everything else is a `Choice`, which is decided
    where it is used.
    """
    opposite = context.predicates.negate(pred)
    then, orelse = _resolved(context, then, pred), _resolved(context, orelse, opposite)
    if then is orelse or _equal_plain(then, orelse) or (isinstance(orelse, Undefined) and isinstance(then, Undefined)):
        return then
    if isinstance(then, torch.Tensor) and isinstance(orelse, torch.Tensor):
        if then.dtype == orelse.dtype and then.device == orelse.device and same_sizes(then, orelse):
            return _select(context, pred, then, orelse)
        return Choice(context, pred, then, orelse)
    kind = KINDS.get(type(then))
    if kind is not None and kind == KINDS.get(type(orelse)):
        numbers = context.numbers
        if isinstance(then, bool) and isinstance(orelse, bool):
            return numbers.read(pred if then else opposite)
        return numbers.read(torch.where(pred, numbers.tensor(then), numbers.tensor(orelse)))
    if type(then) is list and type(orelse) is list:
        return merge_items(context, pred, then, orelse)
    leaves_then, spec_then = pytree.tree_flatten(then)
    leaves_else, spec_else = pytree.tree_flatten(orelse)
    if spec_then == spec_else and not spec_then.is_leaf():
        merged = [merge(context, pred, a, b) for a, b in zip(leaves_then, leaves_else, strict=True)]
        return pytree.tree_unflatten(merged, spec_then)
    return Choice(context, pred, then, orelse)


def _resolved(context: Context, value: Any, pred: torch.Tensor) -> Any:
    """An undecided value where `pred` holds: one of its sides, if `pred` implies which."""
    while isinstance(value, Choice):
        known = context.predicates.decided(value._pred, context.pred, pred)
        if known is None:
            return value
        value = value._then if known else value._orelse
    return value


def _equal_plain(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, (bool, int, *_PLAIN)):
        return bool(left == right)
    # bits, so that 0.0 and -0.0 stay apart and nan equals itself
    return isinstance(left, float) and left.hex() == right.hex()


def _select(context: Context, pred: torch.Tensor, then: torch.Tensor, orelse: torch.Tensor) -> torch.Tensor:
    selected = torch.where(pred, then, orelse)
    context.merged.append((selected, pred, then, orelse))
    return selected


def merge_items(context: Context, pred: torch.Tensor, then: list[Any], orelse: list[Any]) -> list[Any]:
    """Merge two lists; what one has beyond their common start becomes elements that are there on that path only."""
    aligned = len(then) == len(orelse) and not any(
        a is not b and (isinstance(a, Maybe) or isinstance(b, Maybe)) for a, b in zip(then, orelse, strict=True)
    )
    if aligned:
        return [merge(context, pred, a, b) for a, b in zip(then, orelse, strict=True)]
    pairs = zip(then, orelse, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a is not b), min(len(then), len(orelse)))
    opposite = context.predicates.negate(pred)
    return [
        *then[:shared],
        *(_conditional(context, pred, item) for item in then[shared:]),
        *(_conditional(context, opposite, item) for item in orelse[shared:]),
    ]


def _conditional(context: Context, pred: torch.Tensor, item: Any) -> Maybe:
    if isinstance(item, Maybe):
        present = context.predicates.both(pred, item.present)
        assert present is not None
        return Maybe(present, item.value)
    return Maybe(pred, item)


def merge_states(context: Context, pred: torch.Tensor, then: State, orelse: State, outer: int | None = None) -> State:
    """Merge variables and containers of two paths; `outer` limits the variables to the first so many."""
    pairs = list(zip(then.variables, orelse.variables, strict=True))
    kept = len(pairs) if outer is None else outer
    variables = [merge(context, pred, a, b) if i < kept else b for i, (a, b) in enumerate(pairs)]
    held = dict(orelse.heap.held)
    for key, (container, left) in then.heap.held.items():
        _, right = held.get(key, (container, left))
        same = same_contents(left, right)
        owner = then.heap.owners.get(key)
        held[key] = (container, left if same else _merge_contents(context, pred, container, left, right, owner))
    refuse_changes(then.heap.marks, orelse.heap.marks)
    marks, owners = then.heap.marks | orelse.heap.marks, then.heap.owners | orelse.heap.owners
    return State(tuple(variables), Heap(held, marks, owners))


def _merge_contents(
    context: Context, pred: torch.Tensor, container: Any, left: Any, right: Any, owner: Any = None
) -> Any:
    if isinstance(left, list) and (isinstance(container, list) or len(left) == len(right)):
        return merge_items(context, pred, left, right)
    if isinstance(left, dict):
        keys = list(left) + [key for key in right if key not in left]
        if owner is None and any([key for key in keys if key in side] != list(side) for side in (left, right)):
            refuse("the order of the keys of a dict")
        computes = hasattr(type(owner), "__getattr__") and not isinstance(owner, nn.Module)
        if computes and left.keys() != right.keys():
            refuse(f"which attributes a {type(owner).__name__} has, whose class computes others,")
        missing = [Missing(key, owner) for key in keys]
        sides = [(left.get(key, none), right.get(key, none)) for key, none in zip(keys, missing, strict=True)]
        return {key: merge(context, pred, *pair) for key, pair in zip(keys, sides, strict=True)}
    raise DynamicControlFlowError(
        f"a {type(container).__name__} gets different elements on two paths of a branch on a tensor",
        hint="keep the elements in a list, or a dict of tensors",
    )


def fold(context: Context, exits: list[Exit], outer: int | None = None) -> State:
    """The state after a scope whose paths left it by `exits`; exactly one of their predicates holds."""
    state: State = exits[-1].state
    for exit_ in reversed(exits[:-1]):
        assert exit_.pred is not None
        state = merge_states(context, exit_.pred, exit_.state, state, outer)
    return state


def _is_seen_by_others(context: Context, access: Access | None) -> bool:
    """Whether code that was not rewritten could find an undecided value in a container."""
    variables = access.read() if access else ()
    outer = access.outer if access else 0
    own = plainly_held(variables[outer:])
    around = (*variables, *(access.reach() if access else ()), *context.roots)
    return any(is_undecided(item) for key, item in reachable(around).items() if key not in own)


def install(context: Context, state: State, access: Access | None) -> None:
    """Make a merged state the present one."""
    undecided = False
    for container, held in state.heap.held.values():
        if not same_contents(contents(container), held):
            refill(container, held)
            undecided = undecided or is_undecided(held)
    if undecided and _is_seen_by_others(context, access):
        context.watch.taint()
    if access:
        access.write(state.variables)


def settle(context: Context, value: Any) -> Any:
    """A value that may leave the program: an undecided tensor gets the size that its path has.

    Raises:
        DynamicControlFlowError: the two paths return things that no one tensor or number can hold.
    """
    if isinstance(value, Undefined) and value.refuses:
        value._fail()
    if isinstance(value, Choice):
        then, orelse = settle(context, value._then), settle(context, value._orelse)
        tensors = isinstance(then, torch.Tensor) and isinstance(orelse, torch.Tensor)
        if tensors and then.dtype == orelse.dtype and then.dim() == orelse.dim() and then.dim() > 0:
            return _select_sized(context, value._pred, then, orelse)
    if isinstance(value, (Choice, Maybe, Undefined)):
        sides = f"{describe(value._then)} or {describe(value._orelse)}" if isinstance(value, Choice) else "incomplete"
        raise DynamicControlFlowError(
            f"the model returns a value that is {sides}, depending on data",
            hint="return one type and structure on every path; for a choice of shapes, pad to the larger one",
        )
    return value


def _select_sized(context: Context, pred: torch.Tensor, then: torch.Tensor, orelse: torch.Tensor) -> torch.Tensor:
    for dim in range(then.dim()):
        if known_true(then.shape[dim] == orelse.shape[dim]):
            continue
        size = merge(context, pred, then.shape[dim], orelse.shape[dim])
        rows = torch.arange(size, device=then.device)
        then, orelse = (_take_rows(context, side, dim, rows) for side in (then, orelse))
    return torch.where(pred, then, orelse)


def _take_rows(context: Context, side: torch.Tensor, dim: int, rows: torch.Tensor) -> torch.Tensor:
    """The given rows of `side`, zeros for those past its end."""
    shape = list(side.shape)
    shape[dim] = 1
    padded = torch.cat([side, side.new_zeros(shape)], dim)
    last = context.numbers.tensor(side.shape[dim])
    return padded.index_select(dim, rows.clamp(max=last))


def is_number(value: object) -> bool:
    """Whether a value is a Python or symbolic number."""
    return isinstance(value, (bool, int, float, *SYMBOLIC))
