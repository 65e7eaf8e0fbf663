"""Checks of one program against the one before it: shapes and numerics, on CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from enum import IntEnum
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from gaudicc.changes import changed_nodes
from gaudicc.errors import InputError, NumericsError, PostconditionError, Where
from gaudicc.fake_results import FakeResults
from gaudicc.fake_values import fake_mode_of, fakes, guess, is_computed, propagate
from gaudicc.graph_module import copy_graph
from gaudicc.nodes import (
    CALLS,
    body_of,
    call_loop,
    call_region,
    loop_operands,
    loop_values,
    operands_of,
    output_of,
    outputs_of,
    val,
    where,
)
from gaudicc.program import OutputKind, Program
from gaudicc.rewriter import shape_text

# Largest difference allowed, relative to the largest magnitude, of a pass that only rounds.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


class Level(IntEnum):
    """How much is checked after each pass; each level holds the ones before it."""

    STRUCTURE = 0
    SHAPES = 1
    OPS = 2
    NUMERICS = 3
    POISON = 4

    @classmethod
    def parse(cls, name: str) -> Level:
        """The level of a name.

        Raises:
            InputError: no such level.
        """
        if str(name).upper() not in cls.__members__:
            raise InputError(
                f"no verify level {name!r}", hint=f"choose one of {', '.join(n.lower() for n in cls.__members__)}"
            )
        return cls[name.upper()]


def shapes(program: Program, stage: str, before: Program | None = None) -> None:
    """Computes the fake value of every changed node from those that it reads; compares dtype, shape and strides.

    A node that was left alone was compared when it was made, so this is as good as propagating the whole program afresh.

    Args:
        program: what a pass returned.
        stage: the pass.
        before: what it was given; None: nothing was compared yet.

    Raises:
        PostconditionError: a node's recorded value differs from what its op computes.
    """
    old = {} if before is None else dict(before.graphs())
    results = FakeResults()
    for name, module in program.graphs():
        nodes = list(changed_nodes(old.get(name), module)) if old.get(name) is not module else []
        nodes += [node for node in module.graph.nodes if node.target in CALLS and node not in nodes]
        with fake_mode_of(module.graph), torch.no_grad(), enable_python_dispatcher():
            for node in nodes:
                if node.op == "call_function" and "val" in node.meta and not is_computed(node):
                    _compare(module, node, stage, results)


def _compare(module: fx.GraphModule, node: fx.Node, stage: str, results: FakeResults) -> None:
    recorded = node.meta["val"]
    computed = _result_of(module, node, results)
    if _signature(recorded) != _signature(computed):
        raise PostconditionError(
            f"pass {stage} left a wrong type on {node.name}: {_signature(recorded)}, the op gives {_signature(computed)}",
            where=where(node, f"the checks after {stage}"),
            hint=f"let {stage} create nodes through the rewriter",
        )


def _result_of(module: fx.GraphModule, node: fx.Node, results: FakeResults) -> Any:
    if node.target not in CALLS:
        return results.of(node.target, fakes(node.args), fakes(node.kwargs))
    body = body_of(module, node)
    if node.target is call_loop:
        limit, carried = fakes(node.args[1]), int(node.args[3])  # type: ignore[arg-type]
        return loop_values(limit, carried, _results_of(body, loop_operands(carried, fakes(operands_of(node)))))
    return _results_of(body, fakes(operands_of(node)))


def _results_of(body: fx.GraphModule, operands: Sequence[Any]) -> tuple[Any, ...]:
    inputs = [val(inner) for inner in body.graph.find_nodes(op="placeholder")]
    if list(map(_signature, operands)) == list(map(_signature, inputs)):
        return tuple(fakes(outputs_of(body.graph)))
    return propagate(copy_graph(body), operands, fake_mode_of(body.graph))


def _signature(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        unbacked = any("u" in str(size) for size in value.shape)  # every propagation names data-dependent sizes afresh
        return str(value.dtype) if unbacked else f"{shape_text(value)} strides {_strides(value)}"
    if isinstance(value, (tuple, list)):
        return ", ".join(_signature(item) for item in value)
    return type(value).__name__


def _strides(value: torch.Tensor) -> tuple[int, ...]:
    """At the example's sizes: one stride has several forms (`64` and `Min(64, 64*s)`) that torch does not reduce alike.

    A dim of one entry has a stride without meaning: layers that share a body may pass views that differ in it.
    """
    return tuple(
        0 if type(size) is int and size == 1 else guess(step)
        for size, step in zip(value.shape, value.stride(), strict=True)
    )


def numerics(before: Program, after: Program, stage: str, *, bitwise: bool) -> None:
    """Runs both programs on the example inputs, and on a second size where sizes are dynamic, and compares.

    Raises:
        NumericsError: outputs differ; names the first node that does, with both values.
        InputError: the weights are on the meta device, so that nothing can be run.
    """
    if any(tensor.is_meta for tensor in before.tensors.values()):
        raise InputError("numerics cannot be verified with weights on the meta device", hint="use verify='ops'")
    for given in _examples(after):
        inputs, results = in_range(before, given)
        old, new = (_compared(*entry) for entry in ((before, after, results), (after, after, after.run(inputs))))
        for (index, a), (_, b) in zip(old, new, strict=True):
            if difference := differs(a, b, bitwise=bitwise):
                raise NumericsError(
                    f"pass {stage} changed output {index}: {difference}{_first_divergence(before, after, inputs, bitwise)}",
                    where=Where(stage=stage),
                    hint="compare `compiled.trace[...]` before and after, or declare the pass ROUNDING",
                )


def in_range(program: Program, given: Mapping[str, torch.Tensor]) -> tuple[Mapping[str, torch.Tensor], tuple[Any, ...]]:
    """Example inputs of which a program can be run, and what it gives.

    At other sizes than those of the example, lengths and positions that it holds may be too large. Then whole numbers are
    brought to one of the sizes that there are, or below it: best to where the model itself does not raise.

    Args:
        program: to run.
        given: placeholder name -> tensor.

    Raises:
        InputError: no such numbers will do.
    """
    kinds = [spec.kind for spec in program.outputs]
    found: tuple[Mapping[str, torch.Tensor], tuple[Any, ...]] | None = None
    first: Exception | None = None
    for inputs in _candidates(given, {spec.name for spec in program.user_inputs()}):
        try:
            results = program.run(inputs)
        except (IndexError, RuntimeError) as error:
            first = first or error
            continue
        found = found or (inputs, results)
        flags = (value for value, kind in zip(results, kinds, strict=True) if kind is OutputKind.FLAG)
        if not any(bool(flag.any()) for flag in flags):
            return inputs, results
    if found is not None:
        return found
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in given.items() if tensor.dim())
    raise InputError(
        f"the example cannot be taken to {shapes}, where the model raises {type(first).__name__}: {first}",
        hint="use verify='ops', or narrow the Dims to sizes for which the values of the example hold",
    ) from first


def _candidates(given: Mapping[str, torch.Tensor], names: Set[str]) -> Iterator[Mapping[str, torch.Tensor]]:
    """The inputs, then those of which the named ones hold smaller and smaller numbers."""
    yield given
    whole = {
        name: tensor
        for name, tensor in given.items()
        if name in names
        and not tensor.dtype.is_floating_point
        and not tensor.dtype.is_complex
        and tensor.dtype is not torch.bool
    }
    most = max((int(tensor.abs().max()) for tensor in whole.values() if tensor.numel()), default=0)
    for size in sorted({size for tensor in given.values() for size in tensor.shape if 0 < size <= most}, reverse=True):
        yield {**given, **{name: tensor.clamp(-size, size) for name, tensor in whole.items()}}
        yield {**given, **{name: tensor.fmod(size) for name, tensor in whole.items()}}


def _compared(program: Program, after: Program, results: Sequence[Any]) -> list[tuple[int, Any]]:
    """The results that a pass leaves in place, with their positions: not flags, nor what the host cuts to a length."""
    cut = {int(spec.target.split(":")[0]) for spec in after.outputs if spec.kind is OutputKind.LENGTH and spec.target}
    kinds = [spec.kind for spec in program.outputs]
    users = [index for index, kind in enumerate(kinds) if kind is OutputKind.USER]
    left_out = {users[number] for number in cut}
    extra = (OutputKind.FLAG, OutputKind.LENGTH)
    return [(i, results[i]) for i, kind in enumerate(kinds) if kind not in extra and i not in left_out]


def differs(old: Any, new: Any, *, bitwise: bool) -> str | None:
    """How two values differ, or None if they are equal (bitwise, or within the dtype's tolerance)."""
    if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor):
        return None if old == new else f"{old} became {new}"
    if old.shape != new.shape or old.dtype != new.dtype:
        return f"{shape_text(old)} became {shape_text(new)}"
    floating = old.dtype.is_floating_point
    both_nan = old.isnan() & new.isnan() if floating else torch.zeros_like(old, dtype=torch.bool)
    wrong = old != new
    if bitwise and floating:
        wrong |= old.signbit() != new.signbit()  # 0.0 == -0.0
    wrong &= ~both_nan
    if not wrong.any():
        return None
    if not bitwise and old.dtype in TOLERANCE and torch.equal(old.isfinite(), new.isfinite()):
        finite = old.isfinite()
        gap = (old[finite].double() - new[finite].double()).abs().max().item()
        scale = max(old[finite].double().abs().max().item(), 1.0)
        if gap <= TOLERANCE[old.dtype] * scale and torch.equal(old[~finite & ~both_nan], new[~finite & ~both_nan]):
            return None
    at = tuple(int(i) for i in wrong.nonzero()[0])
    return f"{int(wrong.sum())} of {old.numel()} values, first at {at}: {old[at].item()} became {new[at].item()}"


def _examples(program: Program) -> Iterator[Mapping[str, torch.Tensor]]:
    yield program.example
    wanted: dict[str, int] = {}
    for dim in program.dimensions:
        name, position = dim.positions[0]
        size = program.example[name].shape[position]
        wanted[dim.name] = size + 1 if dim.high < 0 or size < dim.high else max(size - 1, dim.low)
    if not wanted or (sizes := program.served(wanted)) is None:
        return
    grown = dict(program.example)
    for dim in program.dimensions:
        for name, position in dim.positions:
            index = torch.arange(sizes[dim.name]) % max(grown[name].shape[position], 1)
            grown[name] = grown[name].index_select(position, index)
    yield grown


def _first_divergence(before: Program, after: Program, inputs: Mapping[str, torch.Tensor], bitwise: bool) -> str:
    """Names the first node that both programs have and whose values differ."""
    old = dict(_values(before.root, before.feed(inputs), "root"))
    for (path, node), value in _values(after.root, after.feed(inputs), "root"):
        known = next((v for (p, n), v in old.items() if p == path and n.name == node.name), None)
        if known is not None and (difference := differs(known, value, bitwise=bitwise)):
            return f"; the first node to differ is {node.name} in {path} ({where(node)}): {difference}"
    return ""


def _values(module: fx.GraphModule, feed: list[Any], path: str) -> Iterator[tuple[tuple[str, fx.Node], Any]]:
    """Every tensor that a run computes, in order, bodies included."""
    known: dict[fx.Node, Any] = {}
    values = iter(feed)
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "output":
                return
            args = fx.map_arg(node.args, known.__getitem__)
            if node.op == "placeholder":
                known[node] = next(values)
            elif node.op == "get_attr":
                known[node] = getattr(module, str(node.target))
            elif node.target is call_region:
                body, *operands = args
                inner = f"{path}/{node.name}"
                results = dict(_values(body, operands, inner))
                by_node = {n: v for (p, n), v in results.items() if p == inner}
                by_node |= dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), operands, strict=True))
                outputs: Any = output_of(body.graph).args[0]
                known[node] = tuple(fx.map_arg(outputs, by_node.__getitem__))
                yield from results.items()
            else:
                known[node] = node.target(*args, **fx.map_arg(node.kwargs, known.__getitem__))
            if isinstance(known[node], torch.Tensor) and node.op == "call_function":
                yield (path, node), known[node]
