"""Capture: the front door. Checks, exports with symbolic sizes, converts."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_config
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from gaudicc.calling import Parameter
from gaudicc.capture import refusals
from gaudicc.capture.assignments import assigned_buffers, refuse_lost
from gaudicc.capture.convert import from_exported
from gaudicc.capture.shapes import check_dims, grow_ones, names_of, separate, specialized
from gaudicc.capture.signature import CallForm, FunctionModule, register_types
from gaudicc.capture.source_lines import every_frame, user_line
from gaudicc.errors import (
    CaptureError,
    DynamicControlFlowError,
    GaudiccError,
    InputError,
    ModelFileError,
    ModelRaisedError,
    UnsupportedInputError,
    Where,
)
from gaudicc.program import Program

Model = Any  # nn.Module | Callable | ExportedProgram | str | Path: isinstance decides, and says what else was given


def capture(
    model: Model,
    example_inputs: Any = (),
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    autocast: torch.dtype | None = None,
) -> Program:
    """Captures a model as a Program.

    Args:
        model: an nn.Module in eval mode, a plain function, an ExportedProgram, or the path of a `.pt2` file.
            Loading a `.pt2` can run code from it: load only what you trust.
        example_inputs: positional arguments, or a dict of keyword arguments.
        example_kwargs: keyword arguments.
        dynamic_shapes: None for static shapes, "auto", or torch.export's form, by argument name.
        autocast: the dtype of an autocast region around the whole model; its casts become part of the program.

    Returns:
        The program, regions found, shapes symbolic where `dynamic_shapes` says so.

    Raises:
        CaptureError: or a subclass, each naming the user's line and the reason.
        InputError: the arguments do not fit the model.
    """
    if isinstance(model, (str, Path)):
        model = _load_pt2(Path(model))
    if isinstance(model, ExportedProgram):
        if autocast is not None:
            raise InputError("an exported program cannot be cast anew", hint="export it inside the autocast region")
        return _from_exported_program(model)
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
    with _cast(module, autocast):
        return _capture_module(module, form, args, kwargs, tuple(path for path, _ in leaves), dynamic_shapes)


def _capture_module(
    module: nn.Module,
    form: CallForm,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    paths: tuple[str, ...],
    dynamic_shapes: Any,
) -> Program:
    auto = dynamic_shapes == "auto"
    if isinstance(dynamic_shapes, str) and not auto:
        raise InputError(f"dynamic_shapes is {dynamic_shapes!r}", hint="pass None, 'auto', or a dict by argument name")
    if auto:
        tensors = {n: v for n, v in [*zip(form.positional, args, strict=False), *kwargs.items()]}
        dynamic_shapes = {
            name: pytree.tree_map(
                lambda leaf: {d: Dim.AUTO for d in range(leaf.dim())} if isinstance(leaf, torch.Tensor) else None, value
            )
            for name, value in tensors.items()
        }
    shapes = form.complete_shapes(dynamic_shapes, args, kwargs)
    check_dims(args, kwargs, form.positional, shapes)
    args, kwargs = grow_ones(*separate(args, kwargs), form.positional, shapes)
    with _output_types(module), _errors(module, args, kwargs):
        exported = _export(module, args, kwargs, shapes)
    example = pytree.tree_leaves((args, kwargs), is_leaf=lambda x: x is None)
    names = names_of(exported, shapes, args, kwargs, form.positional)
    program = from_exported(exported, paths, tuple(example), form.parameters, names)
    lost = specialized(exported, paths) if auto else ()
    program.notes = (*refusals.hooks_of(module), *(f"size fixed by the model: {entry}" for entry in lost))
    return program


def _export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> ExportedProgram:
    with torch.no_grad(), _quiet(), every_frame(), _ones_are_sizes(), assigned_buffers(module) as assigned:
        exported = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    refuse_lost(exported, assigned)
    return exported


def _ones_are_sizes() -> AbstractContextManager[Any]:
    """Stops export from taking a dynamic size for at least 2, which answers `x.shape[0] == 1` for every size.

    torch before 2.8 has no such switch.
    """
    if not hasattr(symbolic_config, "backed_size_oblivious"):
        return nullcontext()
    return symbolic_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined, no-any-return]


@contextmanager
def _cast(module: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Lets a model run under autocast, with the lists of the device that it is on."""
    if dtype is None:
        yield
        return
    if dtype not in (torch.bfloat16, torch.float16):
        raise InputError(f"autocast is {dtype}", hint="pass torch.bfloat16 or torch.float16")
    device = next((tensor.device.type for tensor in (*module.parameters(), *module.buffers())), "cpu")
    own = vars(module).get("forward")
    module.forward = torch.autocast(device, dtype)(module.forward)
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


# These log the traceback of an error that is raised besides.
_TALKATIVE = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's talk to its own developers off the user's screen: deprecations, and the graph as far as it came."""
    said = io.StringIO()
    graph: Any = ""
    loggers = [log for name in _TALKATIVE if not (log := logging.getLogger(name)).disabled]
    try:
        for log in loggers:
            log.disabled = True
        with warnings.catch_warnings(), redirect_stderr(said):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except Exception as error:
        graph = getattr(error, "partial_fx_graph", "")
        raise
    finally:
        for log in loggers:
            log.disabled = False
        sys.stderr.write(said.getvalue().replace(f"{graph}\n", "") if graph else said.getvalue())


def _load_pt2(path: Path) -> ExportedProgram:
    if not path.exists():
        raise ModelFileError(f"no file {path}")
    try:
        return torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
        raise ModelFileError(f"{path} is not a readable .pt2 file: {error}") from error


def _from_exported_program(exported: ExportedProgram) -> Program:
    if exported.example_inputs is None:
        raise InputError(
            "the exported program carries no example inputs", hint="export it again with torch.export.export"
        )
    args, kwargs = exported.example_inputs
    leaves = refusals.leaf_paths([f"arg{i}" for i in range(len(args))], args, kwargs)
    paths = tuple(path for path, _ in leaves)
    # An exported program has forgotten the names of positional arguments.
    parameters = (
        *(Parameter(f"arg{i}", "POSITIONAL_ONLY") for i in range(len(args))),
        *(Parameter(name, "KEYWORD_ONLY") for name in sorted(kwargs)),
    )
    return from_exported(exported, paths, tuple(leaf for _, leaf in leaves), parameters)


@contextmanager
def _output_types(module: nn.Module) -> Iterator[None]:
    """Registers the dataclasses that the model returns, as it returns them."""
    handle = module.register_forward_hook(lambda _module, _args, output: register_types(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _errors(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """Turns what export raises into our errors, with the user's line."""
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
        if eager := _eager_error(module, args, kwargs):
            raise ModelRaisedError(
                f"the model raised {type(eager).__name__}: {_first_line(eager)}",
                where=Where(source=user_line(eager), stage="capture"),
            ) from eager
        if "Constraints violated" in str(error):
            broken = [line.removeprefix("  - ") for line in str(error).splitlines() if line.startswith("  - ")]
            raise UnsupportedInputError(
                f"a size declared dynamic is fixed by the model: {' '.join(broken) or _first_line(error)}",
                where=place,
                hint="fix it in dynamic_shapes, or narrow its Dim to the sizes that the model allows",
            ) from error
        raise CaptureError(f"torch.export failed: {type(error).__name__}: {_first_line(error)}", where=place) from error


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _eager_error(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception | None:
    """What the model raises in eager PyTorch on the same inputs, if it does; buffers and inputs are left as they were."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    copied = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, (args, kwargs))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module(*copied[0], **copied[1])
    except Exception as error:
        return error
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
    return None
