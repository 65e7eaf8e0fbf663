"""Capture, mending: every tensor operation of a traced run passes here, and must do no harm where it is not executed.

Under a predicate an operation in place is undone by `where` on the paths that do not execute it, indices and divisors
are replaced by safe ones there, and random numbers are refused. Nothing is ever multiplied by a mask: a NaN would leak.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gaudicc.capture.mend.answers import answer, asks
from gaudicc.capture.mend.context import Context
from gaudicc.capture.mend.counted import counts_classes, one_hot
from gaudicc.capture.mend.faults import HARMLESS, safe_arguments
from gaudicc.capture.mend.internals import is_constant, is_data_dependent, shares_storage, storage_of, symbol_name
from gaudicc.capture.mend.numbers import KINDS
from gaudicc.capture.mend.operators import fail
from gaudicc.capture.mend.outcomes import NeedsRewrite, here
from gaudicc.capture.mend.pieces import Listed, join_pieces, split
from gaudicc.capture.mend.recurrent import by_steps
from gaudicc.capture.mend.rows import join_rows
from gaudicc.capture.mend.size_lists import SizeList
from gaudicc.capture.mend.size_tensors import note_size, with_sizes
from gaudicc.capture.mend.trip_index import holds_numbers, trip_call, with_tensors, write_through
from gaudicc.capture.mend.truth import fresh_test
from gaudicc.capture.mend.values import Lost, Maybe, Pieces, Rows, distribute, first_choice, replace
from gaudicc.errors import DynamicControlFlowError, Where

_RANDOM = {
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli",
    "multinomial", "poisson", "normal_", "uniform_", "bernoulli_", "random_", "exponential_", "geometric_",
    "cauchy_", "log_normal_",
}  # fmt: skip
_RESIZES = {"resize_", "resize_as_", "set_"}
_RESHAPES = _RESIZES | {"t_", "transpose_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_"}
_READS = {"__bool__", "__int__", "__float__", "__index__"}
_COMPACTS = {"nonzero", "where", "argwhere", "masked_select", "__getitem__", "unique", "unique_consecutive"}


class Interpose(TorchFunctionMode):
    """Watches the tensor operations of one traced run."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.oracle: Callable[[str, Any], Any] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation safely under the current predicate."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if first_choice((args, kwargs)) is not None:
            return distribute(self._again(func), args, kwargs)
        if args and isinstance(args[0], Listed):
            args = (args[0].made, *args[1:])
        if args and isinstance(args[0], SizeList):
            with self:
                return self._of_sizes(name, *args, **kwargs)
        if args and isinstance(args[0], (list, tuple)) and any(isinstance(item, Maybe) for item in args[0]):
            return self._of_partial_list(func, name, args, kwargs)
        if name in ("__getitem__", "__setitem__") and holds_numbers(args[1]):
            with self:
                args = (args[0], with_tensors(self.context, args[1]), *args[2:])
        if self.context.recorders and (run := trip_call(self.context, name, args, kwargs)) is not None:
            with self:
                return run()
        if self.context.keeps_loops and (steps := by_steps(name, args)) is not None:
            with self:
                return steps()
        if counts_classes(name, args, kwargs):
            with self:
                return one_hot(self.context, args[0])
        for recorder in self.context.recorders:
            args, kwargs = recorder.call(name, args, kwargs)
        if name in _READS and not is_constant(args[0]) and args[0].numel() == 1:
            raise NeedsRewrite
        if name in ("_assert", "_assert_async"):
            return self._assert(*args, **kwargs)
        if asks(name, args):
            with self:
                return answer(self.context, name, args, kwargs)
        if name == "__setitem__" and _selects_by_data(args[1]):
            return self._store(*args)
        if (pieces := split(self.context, name, func, args, kwargs)) is not None:
            return pieces
        args, kwargs = with_sizes(self.context, name, args, kwargs)
        result = self._run(func, name, args, kwargs)
        note_size(self.context, name, args, kwargs, result)
        self._note(func, name, args, kwargs, result)
        return result

    def _store(self, target: torch.Tensor, index: Any, value: Any) -> None:
        """`target[i] = value` where i was read from a tensor: through a view, which torch can trace."""

        def number(leaf: Any) -> Any:
            is_index = isinstance(leaf, torch.Tensor)
            return self.context.numbers.read(leaf.to(torch.int64)) if is_index else leaf

        with self:
            view = target[replace(index, number)]
            if isinstance(value, torch.Tensor):
                view.copy_(value)
            else:
                view.fill_(value)

    def _again(self, func: Any) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return func(*args, **kwargs)

        return run

    def _run(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        written = _written(func, name, args, kwargs)
        pred = self.context.pred
        if self.context.recorders:
            place = "in a loop over a dynamic size"
            if name in _RANDOM or _drops(name, args, kwargs):
                self._refuse(name, "draws random numbers", "draw them before the loop", place)
            if name in _RESHAPES:
                self._refuse(name, "changes the shape of a tensor in place", "make a new tensor of that shape", place)
        if any(storage_of(tensor) in self.context.kept_rows for tensor in written):
            self._refuse(name, "changes a tensor", "keep a copy in the loop: .clone()", "of which a loop kept a part")
        if pred is None:
            result = func(*args, **kwargs)
        else:
            if name in _RANDOM or _drops(name, args, kwargs):
                self._refuse(name, "draws random numbers", "draw them before the branch")
            if name in _RESHAPES:
                hint = "make a new tensor of that shape" if name in _RESIZES else f"use {name.rstrip('_')}"
                self._refuse(name, "changes the shape of a tensor in place", hint)
            if name not in HARMLESS:
                args, kwargs = safe_arguments(self.context, pred, func, name, args, kwargs)
            before = [(tensor, tensor.clone()) for tensor in written]
            result = func(*args, **kwargs)
            for tensor, old in before:
                tensor.copy_(torch.where(pred, tensor, old))
        for tensor in written:
            self._propagate(tensor)
        for recorder in self.context.recorders:
            recorder.result((args, list(kwargs.values())), result, written)
        if written and self.context.rows_of:
            write_through(self.context, written)
        return result

    def _propagate(self, written: torch.Tensor) -> None:
        """A merged tensor is, in eager Python, one of its two sides: a write to either is seen through the other."""
        for merged, pred, then, orelse in list(self.context.merged):
            sides = [(pred, then), (self.context.predicates.negate(pred), orelse)]
            if shares_storage(written, merged):
                for test, side in sides:
                    side.copy_(torch.where(test, merged, side))
            else:
                for test, side in sides:
                    if shares_storage(written, side):
                        merged.copy_(torch.where(test, side, merged))

    def _refuse(self, name: str, what: str, hint: str, place: str = "in a branch on a tensor") -> None:
        raise DynamicControlFlowError(f"{name} {what} {place}", where=Where(source=here(), op=name), hint=hint)

    def _assert(self, condition: Any, message: str = "") -> None:
        with self:
            test = condition if isinstance(condition, torch.Tensor) else self.context.numbers.tensor(condition)
            fail(fresh_test(test.reshape(()).eq(0)), AssertionError(message))

    def _of_partial_list(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """`stack` or `cat` of a list whose length depends on data: of everything, then the rows that are there."""
        items, rest = args[0], args[1:]
        dim = kwargs.get("dim", rest[0] if rest else 0)
        for item in items:
            if isinstance(item, Lost):
                item.refuse()
        if name in ("tensor", "as_tensor") and kwargs.get("dtype") is not None:
            with self:
                return self._of_numbers(items, **kwargs)
        if any(isinstance(item, Pieces) for item in items):
            return join_pieces(name, items, dim)
        if any(isinstance(item, Rows) for item in items):
            with self:
                return join_rows(name, items, dim)
        if name not in ("stack", "cat", "concat", "hstack", "vstack") or dim != 0:
            return Maybe.__torch_function__(func, (), args, kwargs)
        with self:
            values = [item.value if isinstance(item, Maybe) else item for item in items]
            every = func(values, *rest, **kwargs)
            rows = [
                self._present(item, value, 1 if name == "stack" else value.shape[0])
                for item, value in zip(items, values, strict=True)
            ]
            if not any(not isinstance(item, Maybe) for item in items):
                present = torch.stack([item.present for item in items]).any()
                message = f"{name} expects a non-empty TensorList" if name == "stack" else (
                    f"torch.{name}(): expected a non-empty list of Tensors")  # fmt: skip
                fail(fresh_test(torch.logical_not(present)), RuntimeError(message))
            return every[torch.cat(rows)]

    def _of_numbers(self, items: list[Any], dtype: torch.dtype, device: Any = None) -> torch.Tensor:
        """`torch.tensor` of numbers that are there on some paths only; the dtype of none at all is no number's."""
        values = [item.value if isinstance(item, Maybe) else item for item in items]
        every = torch.stack([self.context.numbers.tensor(value).to(dtype) for value in values])
        rows = [self._present(item, every, 1) for item in items]
        return every[torch.cat(rows)].to(device)

    def _of_sizes(self, name: str, numbers: SizeList, dtype: torch.dtype | None = None, device: Any = None) -> Any:
        """`torch.tensor` of `list(range(size))`."""
        if name not in ("tensor", "as_tensor"):
            numbers.refuse(f"is given to torch.{name}")
        return numbers.tensor(dtype, device)

    def _present(self, item: Any, value: torch.Tensor, count: Any) -> torch.Tensor:
        test = item.present if isinstance(item, Maybe) else torch.ones((), dtype=torch.bool, device=value.device)
        return test.reshape(1).expand(count)

    def _note(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """Remember where numbers come from and how long compacted tensors can be."""
        context = self.context
        if name == "item" and not context.numbers.reading and is_data_dependent(result):
            source, wide = args[0], KINDS[type(result)]
            with self:
                source = (
                    source.clone() if wide is torch.bool else source
                )  # it may become a predicate, then change in place
                source = source if source.dim() == 0 else source.reshape(())
                context.numbers.remember(result, source if source.dtype is wide else source.to(wide))
        if name in _COMPACTS:
            for output in result if isinstance(result, tuple) else (result,):
                if isinstance(output, torch.Tensor) and output.dim() and is_data_dependent(output.shape[0]):
                    self._bound(output, args)
            if name in ("nonzero", "argwhere") and not kwargs and isinstance(result, torch.Tensor):
                mask = args[0].ne(0)
                if all(isinstance(size, int) for size in mask.shape):
                    context.nonzero_of[id(result)] = (result, mask)

    def _bound(self, output: torch.Tensor, args: Any) -> None:
        mask = (
            args[1] if len(args) > 1 and isinstance(args[1], torch.Tensor) and args[1].dtype is torch.bool else args[0]
        )
        numel = mask.numel() if isinstance(mask, torch.Tensor) else None
        if isinstance(numel, int):
            size: Any = output.shape[0]
            self.context.bounds.setdefault(symbol_name(size), numel)


def _selects_by_data(index: Any) -> bool:
    """Whether an index has scalars that depend on data, beside slices and plain numbers only."""
    parts = list(index) if isinstance(index, tuple) else [index]
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    if any(part.dim() or part.dtype in (torch.bool, torch.uint8) for part in tensors):
        return False
    plain = not any(isinstance(part, list) for part in parts)
    return plain and (bool(tensors) or any(is_data_dependent(part) for part in parts))


def _drops(name: str, args: Any, kwargs: Any) -> bool:
    if "dropout" not in name:
        return False
    training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
    return bool(training)


def _written(func: Any, name: str, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors that an operation changes."""
    targets = list(_flatten(kwargs.get("out")))
    schema = getattr(func, "_schema", None)
    if schema is not None:
        for argument, value in zip(schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                targets += _flatten(value)
    elif name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__int__", "__index__")):
        targets.append(args[0])
    elif name.endswith("_") and not name.endswith("__") and args and name != "requires_grad_":
        targets += _flatten(args[0])
    elif inspect.isfunction(func) and _is_inplace(func, args, kwargs):
        targets.append(args[0])
    return [target for target in targets if isinstance(target, torch.Tensor)]


def _is_inplace(func: Any, args: Any, kwargs: Any) -> bool:
    if kwargs.get("inplace"):
        return True
    names = list(inspect.signature(func, follow_wrapped=False).parameters)
    return "inplace" in names and names.index("inplace") < len(args) and bool(args[names.index("inplace")])


def _flatten(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flatten(item)
