"""Capture, mending: stand-ins for values that two paths of the program do not agree on.

A stand-in is harmless until it is used; then the operation runs on the value of each path, under that path's
predicate, and what the paths would have raised becomes a flag of the captured program.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch

from gaudicc.errors import DynamicControlFlowError

if TYPE_CHECKING:
    from gaudicc.capture.mend.context import Context


class Undefined:
    """A name that no statement has assigned on this path; every use raises what eager Python would."""

    refuses = False  # whether a use of it is refused at capture, where eager PyTorch has a value

    def __init__(self, error: type[Exception], message: str) -> None:
        self._error, self._message = error, message

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        self._fail()

    def _fail(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise self._error(self._message)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        """Any tensor operation on the missing value fails as reading the name does."""
        missing = next(value for value in _leaves((args, kwargs or {})) if isinstance(value, cls))
        missing._fail()


class Missing(Undefined):
    """What a dict holds under a key, or an object under an attribute, that is set on other paths only."""

    def __init__(self, name: object, owner: object = None) -> None:
        super().__init__(AttributeError, f"'{type(owner).__name__}' object has no attribute '{name}'")


def undefined_local(name: str) -> Undefined:
    """The value of a local variable before its first assignment."""
    message = f"cannot access local variable '{name}' where it is not associated with a value"
    return Undefined(UnboundLocalError, message)


class Choice:
    """One of two values that cannot be merged into one, by a predicate known only at run time."""

    def __init__(self, context: Context, pred: torch.Tensor, then: object, orelse: object) -> None:
        self._context, self._pred, self._then, self._orelse = context, pred, then, orelse

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Apply a tensor function to each path's value."""
        return distribute(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return distribute(getattr, (self, name), {})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls whichever of the two it is."""
        return distribute(lambda function, *a, **k: function(*a, **k), (self, *args), kwargs)

    def _refuse(self, *_args: Any) -> NoReturn:
        kinds = f"{describe(self._then)} on one path and {describe(self._orelse)} on the other"
        raise DynamicControlFlowError(
            f"a value is {kinds}, and is used where Python needs one value",
            hint="give both paths values of one type and shape, or use the value only inside the branch that sets it",
        )

    __bool__ = __len__ = __iter__ = __index__ = __int__ = __float__ = __contains__ = _refuse

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            distribute(setattr, (self, name, value), {})

    def __setitem__(self, key: object, value: object) -> None:
        distribute(operator.setitem, (self, key, value), {})


@dataclass(frozen=True, slots=True)
class Maybe:
    """A list element that is there only where `present` holds."""

    present: torch.Tensor
    value: Any

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        """Only the list functions that mending knows can take a list of unknown length."""
        refuse_partial(getattr(func, "__name__", str(func)))

    def _refuse(self, *_args: Any) -> NoReturn:
        refuse_partial("an operator")


class Many(Maybe):
    """A list element that stands for as many tensors as a loop makes trips: no operation but those that know it can take it."""

    __slots__ = ()
    taken: ClassVar[tuple[str, str]]
    """What fills such a list and what takes it, and what to do instead of anything else."""

    def __init__(self, value: Any) -> None:
        object.__setattr__(self, "value", value)

    @property
    def present(self) -> NoReturn:
        """Refuses."""
        self.refuse()

    def refuse(self) -> NoReturn:
        """Refuses whatever is done to the list."""
        fills, hint = self.taken
        raise DynamicControlFlowError(f"a list that a loop over {fills}", hint=hint)


class Rows(Many):
    """What the trips of a loop over a dynamic size appended to a list: their tensors, stacked along a new first dim."""

    __slots__ = ()
    taken = (
        "a dynamic size fills is used otherwise than by torch.stack, torch.cat, len or an index",
        "stack the list after the loop, and go on with the tensor",
    )


class Pieces(Many):
    """What a loop over pieces whose lengths depend on data appended to a list: the tensors of all pieces, joined along `dim`."""

    __slots__ = ("dim",)
    taken = (
        "pieces fills is used otherwise than by torch.cat",
        "join it along the dim of the pieces, and go on with the tensor",
    )

    def __init__(self, value: torch.Tensor, dim: int) -> None:
        super().__init__(value)
        object.__setattr__(self, "dim", dim)


class Lost(Many):
    """What the trips of a loop over a dynamic size, or over pieces, appended to a list and what makes no one tensor."""

    __slots__ = ()
    taken = (
        "a dynamic size or over pieces fills is used, and what its trips append cannot be one tensor",
        "append tensors of one shape and dtype, and one tensor of each piece, with one dim as long as the piece",
    )

    def __init__(self) -> None:
        super().__init__(None)


def refuse_partial(what: str) -> NoReturn:
    """Refuses something that mending cannot do to a list or dict whose elements depend on data."""
    raise DynamicControlFlowError(
        f"{what} is given a list whose length depends on data, or an item of it",
        hint="use torch.stack, torch.cat, sum, len, indexing or a loop on such a list",
    )


def describe(value: object) -> str:
    """A value in words, for errors."""
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, Undefined):
        return "not assigned"
    if isinstance(value, Choice):
        return "undecided"
    return "None" if value is None else f"of type {type(value).__name__}"


def _leaves(tree: object) -> list[object]:
    if isinstance(tree, (list, tuple)):
        return [leaf for item in tree for leaf in _leaves(item)]
    if isinstance(tree, dict):
        return [leaf for item in tree.values() for leaf in _leaves(item)]
    if isinstance(tree, slice):
        return [tree.start, tree.stop, tree.step]
    return [tree]


class OfSizes:
    """A stand-in for a list that is as long as a dynamic size says."""


def is_undecided(tree: object) -> bool:
    """Whether a value, or an item of nested lists, tuples and dicts, is a stand-in that only rewritten code may hold."""
    return any(isinstance(leaf, (Choice, Maybe, Undefined)) for leaf in _leaves(tree))


def is_partial(tree: object) -> bool:
    """Whether nested lists, tuples and dicts have an element that is there on some paths only."""
    return any(isinstance(leaf, Maybe) or holds_missing(leaf) for leaf in _leaves(tree))


def is_of_sizes(tree: object) -> bool:
    """Whether a value, or an item of nested lists, tuples and dicts, is a list that is as long as a dynamic size says."""
    return any(isinstance(leaf, OfSizes) for leaf in _leaves(tree))


def holds_missing(value: object) -> bool:
    """Whether a value is one that a dict or object has on some paths only."""
    if isinstance(value, Choice):
        return holds_missing(value._then) or holds_missing(value._orelse)
    return isinstance(value, Missing)


def replace(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Change every leaf of nested lists, tuples, dicts and slices; a tree without change is returned as it is."""
    if isinstance(tree, (list, tuple)) and type(tree) in (list, tuple, torch.Size):
        changed = [replace(item, change) for item in tree]
        unchanged = all(new is old for new, old in zip(changed, tree, strict=True))
        return tree if unchanged else (changed if isinstance(tree, list) else tuple(changed))
    if type(tree) is dict:
        items = {key: replace(item, change) for key, item in tree.items()}
        return {key: item for key, item in items.items() if not isinstance(item, Missing)}
    if isinstance(tree, slice):
        return slice(*(replace(item, change) for item in (tree.start, tree.stop, tree.step)))
    return change(tree)


def first_choice(tree: object) -> Choice | None:
    """The first undecided value among the arguments of an operation, or None."""
    return next((leaf for leaf in _leaves(tree) if isinstance(leaf, Choice)), None)


def distribute(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the value of each path and merge the results."""
    choice = first_choice((args, kwargs))
    if choice is None:
        return function(*args, **kwargs)
    pred = choice._pred

    def on(side: str) -> Callable[[], Any]:
        def pick(leaf: Any) -> Any:
            return getattr(leaf, side) if isinstance(leaf, Choice) and leaf._pred is pred else leaf

        return lambda: distribute(function, replace(args, pick), replace(kwargs, pick))

    from gaudicc.capture.mend.context import Access

    # What the operation may change: the arguments, and what the function itself can reach.
    access = Access(lambda: (function, getattr(function, "__self__", None), args, kwargs), lambda _: None)
    return choice._context.choose(pred, on("_then"), on("_orelse"), access)


def by_key(function: Callable[..., Any], *containers: Any, key: Any) -> Any:
    """`function(*containers, key)`, once for each key that an undecided one can be; what they hold may be undecided too."""
    return distribute(partial(function, *containers), (key,), {})


def _forward_operators() -> None:
    """Give `Choice` and `Undefined` every operator: the first distributes it, the second fails."""
    names = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift"]
    names += ["rshift", "lt", "le", "gt", "ge", "eq", "ne", "neg", "pos", "invert", "abs", "getitem"]

    def forward(function: Callable[..., Any], swap: bool) -> Callable[..., Any]:
        def method(self: Any, *others: Any) -> Any:
            return distribute(function, (*others, self) if swap else (self, *others), {})

        return method

    for name in names:
        function, special = getattr(operator, name), name.rstrip("_")
        setattr(Choice, f"__{special}__", forward(function, swap=False))
        setattr(Undefined, f"__{special}__", Undefined._fail)
        if name != "eq":  # two such items are compared by their identity only, by mending itself
            setattr(Maybe, f"__{special}__", Maybe._refuse)
        if name in names[: names.index("lt")]:
            setattr(Choice, f"__r{special}__", forward(function, swap=True))
            setattr(Undefined, f"__r{special}__", Undefined._fail)
            setattr(Maybe, f"__r{special}__", Maybe._refuse)
    for special in ("__bool__", "__len__", "__iter__", "__call__", "__index__", "__int__", "__float__"):
        setattr(Undefined, special, Undefined._fail)
        setattr(Maybe, special, Maybe._refuse)
    Choice.__hash__ = object.__hash__  # type: ignore[method-assign]
    Undefined.__hash__ = object.__hash__  # type: ignore[method-assign]


_forward_operators()
