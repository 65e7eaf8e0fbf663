"""Conditions on a call that take support away; the tables name them and `Target` evaluates them.

Facts are the fallback predicates of HabanaAI/gaudi-pytorch-bridge 1.19.0 (`hpu_ops/backend/`) unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gaudicc.targets.dtypes import INTEGRAL, code
from gaudicc.targets.model import Mode

Sizes = tuple[tuple[object, ...], ...]


@dataclass(frozen=True, slots=True)
class Call:
    """What is known of one call.

    Attributes:
        dtypes: codes of the tensor operands, in order.
        mode: the execution mode.
        sizes: sizes of the tensor operands in order, ints or SymInts; None when unknown.
        arguments: the arguments by schema name; None when unknown, and then no condition on them holds.
    """

    dtypes: tuple[str, ...]
    mode: Mode
    sizes: Sizes | None = None
    arguments: Mapping[str, object] | None = None

    def argument(self, name: str) -> object:
        """The argument, or None where it is absent or unknown."""
        return None if self.arguments is None else self.arguments.get(name)


@dataclass(frozen=True, slots=True)
class Condition:
    """A named predicate over a call.

    Attributes:
        name: as the tables spell it.
        reason: why support ends there, one clause.
        holds: the predicate.
        dynamic: whether the call then depends on data.
        modes: modes in which it matters.
    """

    name: str
    reason: str
    holds: Callable[[Call], bool]
    dynamic: bool = False
    modes: tuple[Mode, ...] = (Mode.LAZY, Mode.COMPILE)


def _bool_index(call: Call) -> bool:
    indices = call.argument("indices")
    if isinstance(indices, (list, tuple)):
        dtypes = {code(index.dtype) for index in indices if index is not None}
    else:
        dtypes = set(call.dtypes[1:])
    return bool({"bool", "u8"} & dtypes)


def _none_index(call: Call) -> bool:
    indices = call.argument("indices")
    return isinstance(indices, (list, tuple)) and any(index is None for index in indices)


def _rank_over_five(call: Call) -> bool:
    return call.sizes is not None and any(len(shape) > 5 for shape in call.sizes[:1])


def _long_stable_sort(call: Call) -> bool:
    if not call.argument("stable") or not call.sizes or not call.sizes[0]:
        return False
    dim = call.argument("dim")
    axis = (dim if isinstance(dim, int) else -1) % len(call.sizes[0])
    size = call.sizes[0][axis]
    return axis == 0 or not isinstance(size, int) or size > 37


def _step(call: Call) -> bool:
    return call.argument("step") not in (None, 1)


def _classes_from_data(call: Call) -> bool:
    return call.arguments is not None and call.arguments.get("num_classes", -1) == -1


def _training_embedding(call: Call) -> bool:
    return bool(call.argument("scale_grad_by_freq") or call.argument("sparse"))


def _integer_true_division(call: Call) -> bool:
    known = call.arguments is not None and call.argument("rounding_mode") is None
    return known and INTEGRAL.issuperset(call.dtypes) and not isinstance(call.argument("other"), float)


def _not_int64(call: Call) -> bool:
    return call.dtypes not in ((), ("i64",))


def _symbolic(call: Call) -> bool:
    return call.sizes is not None and any(not isinstance(size, int) for shape in call.sizes for size in shape)


COMPILE_ONLY = (Mode.COMPILE,)
CONDITIONS: dict[str, Condition] = {
    condition.name: condition
    for condition in (
        Condition("bool-index", "a bool or uint8 index becomes nonzero and a host read", _bool_index, dynamic=True),
        Condition("none-index", "hpu_backend keeps it only when no index is None", _none_index, modes=COMPILE_ONLY),
        Condition("rank-over-five", "above rank 5 it falls back to the host", _rank_over_five),
        Condition(
            "long-stable-sort", "a stable sort along dim 0 or over more than 37 elements falls back", _long_stable_sort
        ),
        Condition("step", "its step is not 1", _step),
        Condition("classes-from-data", "without num_classes its size is read from the data", _classes_from_data, True),
        Condition("training-embedding", "scale_grad_by_freq and sparse fall back", _training_embedding),
        Condition("integer-true-division", "integer division without rounding falls back", _integer_true_division),
        Condition("not-int64", "hpu_backend clusters it for int64 only", _not_int64, modes=COMPILE_ONLY),
        Condition("symbolic", "hpu_backend places it eager when sizes are symbolic", _symbolic, modes=COMPILE_ONLY),
    )
}
