"""Capture: the front door. Checks, exports with symbolic sizes, converts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from gaudicc.capture import refusals
from gaudicc.capture.convert import from_exported
from gaudicc.capture.decisions import Decision, Ranges, refuse_decision, span
from gaudicc.capture.eager import eager_error
from gaudicc.capture.equal_sizes import equal_sizes
from gaudicc.capture.exact_sizes import exact_sizes
from gaudicc.capture.experts import experts_of
from gaudicc.capture.fixed_sizes import noting_fixed_sizes
from gaudicc.capture.hosting import HostCallMet, hosting, named, with_host_sizes
from gaudicc.capture.mend import DECIDES, MendedExport, carry_flags, export_mending
from gaudicc.capture.pt2 import from_exported_program, load_pt2
from gaudicc.capture.shapes import check_dims, dims_by_size, grow_ones, separate, specialized
from gaudicc.capture.sides import Raising, export_every_side
from gaudicc.capture.signature import CallForm, FunctionModule, register_types
from gaudicc.capture.source_lines import every_frame, user_line
from gaudicc.capture.surroundings import (
    attention_in_parts,
    cast,
    data_is_the_tensor,
    masks_as_given,
    no_grad_modes,
    no_seeds,
    output_types,
    quiet,
)
from gaudicc.capture.tensor_attributes import Attribute, as_buffers, written_attributes
from gaudicc.capture.zero_sizes import from_one
from gaudicc.errors import (
    CaptureError,
    DynamicControlFlowError,
    GaudiccError,
    InputError,
    ModelRaisedError,
    UnsupportedInputError,
    Where,
)
from gaudicc.host_calls import HostCall, with_results
from gaudicc.program import Program

Model = Any  # nn.Module | Callable | ExportedProgram | str | Path: isinstance decides, and says what else was given


def capture(
    model: Model,
    example_inputs: Any = (),
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    autocast: torch.dtype | None = None,
    experts: str = "dispatch",
) -> Program:
    """Captures a model as a Program.

    Args:
        model: an nn.Module in eval mode, a plain function, an ExportedProgram, or the path of a `.pt2` file.
            Loading a `.pt2` can run code from it: load only what you trust.
        example_inputs: positional arguments, or a dict of keyword arguments.
        example_kwargs: keyword arguments.
        dynamic_shapes: None for static shapes, "auto", or torch.export's form, by argument name.
        autocast: the dtype of an autocast region around the whole model; its casts become part of the program.
        experts: `dispatch` sends each token to its experts, whatever implementation a transformers model names;
            `as-written` captures that implementation.

    Returns:
        The program, regions found, shapes symbolic where `dynamic_shapes` says so.

    Raises:
        CaptureError: or a subclass, each naming the user's line and the reason.
        InputError: the arguments do not fit the model.
    """
    sides = capture_sides(
        model, example_inputs, example_kwargs, dynamic_shapes=dynamic_shapes, autocast=autocast, experts=experts
    )
    if len(sides) > 1 or sides[0].raising:
        refuse_decision(sides[0].when[0][0])
    return sides[0].program


@dataclass(frozen=True, slots=True)
class CapturedSide:
    """What a model computes for some of the declared sizes.

    Attributes:
        program: the program.
        when: the sizes: all decisions of any one entry hold.
        ranges: name of a size -> smallest and largest, of all sides together.
        raising: the sizes for which the model raises, of all sides together.
    """

    program: Program
    when: tuple[tuple[Decision, ...], ...] = ((),)
    ranges: Ranges = field(default_factory=dict)
    raising: tuple[Raising, ...] = ()

    def serves(self, sizes: Mapping[str, int]) -> bool:
        """Whether these sizes are on this side."""
        return any(all(decision.holds(sizes) for decision in entry) for entry in self.when)

    def __str__(self) -> str:
        return " or ".join(" and ".join(decision.text for decision in entry) for entry in self.when)


def capture_sides(
    model: Model,
    example_inputs: Any = (),
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    autocast: torch.dtype | None = None,
    experts: str = "dispatch",
) -> list[CapturedSide]:
    """Captures a model whose Python may decide on sizes: a program for every side of its decisions.

    Arguments and errors are those of `capture`.

    Returns:
        The sides, the example's first; almost always one.
    """
    if isinstance(model, (str, Path)):
        model = load_pt2(Path(model))
    if isinstance(model, ExportedProgram):
        if autocast is not None:
            raise InputError("an exported program cannot be cast anew", hint="export it inside the autocast region")
        return [CapturedSide(from_exported_program(model))]
    if isinstance(model, type) or not (isinstance(model, nn.Module) or callable(model)):
        raise InputError(
            f"the model is {'the class' if isinstance(model, type) else 'a'} {getattr(model, '__name__', type(model).__name__)}",
            hint="pass an nn.Module, a function, an ExportedProgram or the path of a .pt2 file",
        )
    refusals.refuse_ambient()
    refusals.refuse_script(model)
    module = model if isinstance(model, nn.Module) else FunctionModule(model)
    refusals.refuse_model(module)
    form = CallForm(module.forward if isinstance(model, nn.Module) else model)
    args, kwargs = form.bind(*refusals.check_examples(example_inputs, example_kwargs))
    register_types((args, kwargs))
    leaves = refusals.leaf_paths(form.positional, args, kwargs)
    refusals.refuse_inputs(leaves)
    refusals.refuse_mixed_devices(module, leaves)
    calls: list[HostCall] = []  # what is computed on the host before, as far as it is known
    written: list[Attribute] = []  # plain tensors that are state
    with cast(module, autocast), experts_of(experts):
        while True:
            try:
                with as_buffers(written):
                    return _capture_module(module, form, args, kwargs, calls, dynamic_shapes)
            except HostCallMet as met:
                calls.append(named(met.call, calls, args, kwargs))
            except RuntimeError as error:
                if not (more := written_attributes(module, error)):
                    raise
                written += more


def _capture_module(
    module: nn.Module,
    form: CallForm,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    calls: Sequence[HostCall],
    dynamic_shapes: Any,
) -> list[CapturedSide]:
    if auto := dynamic_shapes == "auto":
        given = [*zip(form.positional, args, strict=False), *kwargs.items()]
        dynamic_shapes = {name: pytree.tree_map(_every_dim, value) for name, value in given}
    elif isinstance(dynamic_shapes, str):
        raise InputError(f"dynamic_shapes is {dynamic_shapes!r}", hint="pass None, 'auto', or a dict by argument name")
    shapes: Mapping[str, Any] | None = form.complete_shapes(dynamic_shapes, args, kwargs)
    declared = dims_by_size(args, kwargs, form.positional, shapes) if calls else {}
    kwargs = with_results(calls, args, kwargs)
    shapes = with_host_sizes(shapes, calls, kwargs, declared)
    paths = tuple(path for path, _ in refusals.leaf_paths(form.positional, args, kwargs))
    check_dims(args, kwargs, form.positional, shapes)
    args, kwargs = grow_ones(*separate(args, kwargs), form.positional, shapes)
    raises = partial(eager_error, module)
    hosted, typed = hosting(module, calls, kwargs), output_types(module)
    with hosted, typed, noting_fixed_sizes() as fixed, _errors(module, args, kwargs, fixed):
        shapes, at_zero = from_one(args, kwargs, form.positional, shapes, raises)
        try:
            found = export_every_side(partial(_export, module), args, kwargs, form.positional, shapes, raises)
        except DynamicControlFlowError:
            if not auto:
                raise
            export = partial(_export, module, keep_loops=False)  # a size that a loop fixes is listed, not refused
            found = export_every_side(export, args, kwargs, form.positional, shapes, raises)
    sides, raising, ranges = found
    captured = []
    for side in sides:
        exported = side.mended.exported
        example = pytree.tree_leaves((side.args, side.kwargs), is_leaf=lambda x: x is None)
        program = from_exported(exported, paths, tuple(example), form.parameters, side.names)
        program.calling = replace(program.calling, hosted=tuple(calls))
        carry_flags(program, side.mended.flags)
        program.notes = (
            *refusals.hooks_of(module),
            *(f"size fixed by the model: {entry}" for entry in (specialized(exported, paths) if auto else ())),
            *(f"{DECIDES}{function}" for function in side.mended.rewritten),
            *(f"computed on the host before each call: {call.function.__name__}" for call in calls),
        )
        program.raising_at_zero = at_zero
        spans: Ranges = {}
        if len(sides) > 1 or raising:
            spans = {name: span(name, side.when, bounds) for name, bounds in ranges.items()}
            program.dimensions = tuple(
                replace(dim, low=spans[dim.name][0], high=spans[dim.name][1]) for dim in program.dimensions
            )
        captured.append(CapturedSide(program, tuple(side.when), ranges, tuple(raising)))
        program.serves = partial(_serves, captured[-1], {name: low for name, (low, _) in spans.items()})
    return captured


def _serves(side: CapturedSide, lowest: Mapping[str, int], sizes: Mapping[str, int]) -> bool:
    """Whether the sizes that are dynamic on a side are on it; the others are one number there, so their lowest."""
    return side.serves({**lowest, **sizes})


def _every_dim(leaf: Any) -> dict[int, Any] | None:
    return dict.fromkeys(range(leaf.dim()), Dim.AUTO) if isinstance(leaf, torch.Tensor) else None


def _export(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any, keep_loops: bool = True
) -> MendedExport:
    with (
        torch.no_grad(),
        quiet(),
        no_seeds(),
        no_grad_modes(),
        attention_in_parts(module, args, kwargs),
        masks_as_given(),
        data_is_the_tensor(),
        every_frame(),
        exact_sizes(),
        equal_sizes(module, shapes),
    ):
        return export_mending(module, args, kwargs, shapes, keep_loops=keep_loops)


@contextmanager
def _errors(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], fixed: Sequence[str]) -> Iterator[None]:
    """Turns what export raises into our errors, with the user's line; `fixed`: where sizes became numbers."""
    try:
        yield
    except GaudiccError:
        raise
    except Exception as error:
        place = Where(source=user_line(error), stage="capture")
        if isinstance(error, GuardOnDataDependentSymNode) or "data-dependent" in str(error):
            raise DynamicControlFlowError(
                f"Python decides on the value of a tensor: {_first_line(error)}", where=place
            ) from error
        if isinstance(error, DynamicOutputShapeException):
            raise DynamicControlFlowError(
                f"the size of what {error.func} gives depends on the values of a tensor",
                where=replace(place, op=str(error.func)),
                hint="torch has no form of the op for such a size: take it out of the model, or use a form whose sizes do not "
                "depend on data",
            ) from error
        if eager := eager_error(module, args, kwargs):
            raise ModelRaisedError(
                f"the model raised {type(eager).__name__}: {_first_line(eager)}",
                where=Where(source=user_line(eager), stage="capture"),
            ) from eager
        if "Constraints violated" in str(error):
            broken = [line.removeprefix("  - ") for line in str(error).splitlines() if line.startswith("  - ")]
            raise UnsupportedInputError(
                f"a size declared dynamic is fixed by the model: {' '.join(broken) or _first_line(error)}",
                where=Where(source=place.source or next(iter(fixed), None), stage="capture"),
                hint="fix it in dynamic_shapes, or narrow its Dim to the sizes that the model allows; a loop that lists "
                "a size otherwise than by range or row by row is unrolled: compile once per size, or compute all steps at once",
            ) from error
        if isinstance(error, TypeError) and "unhashable type: non-nested Sym" in str(error):
            raise UnsupportedInputError(
                "a size declared dynamic is the key of a dict or of a cache",
                where=place,
                hint="fix it in dynamic_shapes, or keep by size nothing that the model looks up",
            ) from error
        raise CaptureError(f"torch.export failed: {type(error).__name__}: {_first_line(error)}", where=place) from error


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
