"""Capture, fourth step: ExportedProgram -> Program. Functional graph, weights by name, mutations as state."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument
from torch.export.graph_signature import InputKind as TorchInput
from torch.export.graph_signature import OutputKind as TorchOutput
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from gaudicc.calling import Calling, Parameter
from gaudicc.capture.decisions import asking_nothing
from gaudicc.capture.outline import outline
from gaudicc.capture.outline_higher import outline_higher
from gaudicc.capture.outline_loops import outline_loops
from gaudicc.capture.regions import split_regions
from gaudicc.capture.shapes import bounds_of, settled
from gaudicc.errors import CaptureError, DynamicControlFlowError, WeightChangedError
from gaudicc.fake_views import views_as_laid_out
from gaudicc.nodes import output_of, outputs_of, where
from gaudicc.program import Dimension, InputKind, InputSpec, OutputKind, OutputSpec, Program
from gaudicc.rewriter import Rewriter, drop_dead_nodes

_KINDS = {
    TorchInput.PARAMETER: InputKind.WEIGHT,
    TorchInput.BUFFER: InputKind.WEIGHT,
    TorchInput.CONSTANT_TENSOR: InputKind.CONSTANT,
    TorchInput.USER_INPUT: InputKind.USER,
}


@views_as_laid_out()
def from_exported(
    exported: ExportedProgram,
    paths: tuple[str, ...],
    example: tuple[Any, ...],
    parameters: tuple[Parameter, ...],
    names: Mapping[str, str] | None = None,
) -> Program:
    """Turns an exported program into a Program.

    Args:
        exported: what torch.export returned; traced again here where it mutates anything or holds an autocast region.
        paths: the path of every leaf of its inputs.
        example: the example value of every leaf.
        parameters: the model's own signature.
        names: symbol -> the user's name of that size.

    Raises:
        CaptureError: the graph holds a torchbind object, a token or a higher-order op without meaning here.
    """
    if _mutates_or_casts(exported.graph_module):
        with torch.no_grad(), warnings.catch_warnings(), asking_nothing(exported):
            warnings.simplefilter("ignore", FutureWarning)  # torch copies its own deprecated types
            exported = exported.run_decompositions({})
    root = fx.GraphModule(dict(exported.graph_module.named_children()), _copy(exported.graph))
    _settle_sizes(root.graph)
    outline_higher(root)
    _refuse_higher_order(root)
    _drop_assertions_on_types(root.graph)
    _drop_detach(root.graph)
    mutated = _mutated_buffers(exported)
    inputs, tensors = _bind(root, exported, paths, mutated)
    outputs, literals = _outputs(root, exported, paths)
    _drop_unused(root, inputs, outputs)
    kept = tuple(spec for spec in inputs if spec.name in {n.name for n in root.graph.nodes if n.op == "placeholder"})
    static = {i: value for i, value in enumerate(example) if not isinstance(value, torch.Tensor)}
    calling = Calling(exported.call_spec.in_spec, paths, static, exported.call_spec.out_spec, literals, parameters)
    by_path = dict(zip(paths, example, strict=True))
    outline_loops(root)
    root.recompile()
    outline(root)
    split_regions(root)
    return Program(
        root=root,
        inputs=kept,
        outputs=outputs,
        tensors={spec.source: tensors[spec.source] for spec in kept if spec.kind is not InputKind.USER},
        calling=calling,
        dimensions=_dimensions(root, kept, exported, names or {}),
        example={spec.name: by_path[spec.source] for spec in kept if spec.kind is InputKind.USER},
    )


def _mutates_or_casts(root: fx.GraphModule) -> bool:
    """Whether tracing again makes the graph plainer: functional, casts of autocast regions and `vmap` as ops."""
    nodes = [node for graph in root.modules() if isinstance(graph, fx.GraphModule) for node in graph.graph.nodes]
    return any(
        node.target is torch.ops.higher_order.wrap_with_autocast or _is_vmap(node) or _mutates(node) for node in nodes
    )


def _is_vmap(node: fx.Node) -> bool:
    return getattr(node.target, "__module__", "") == "torch._functorch.predispatch"


def _mutates(node: fx.Node) -> bool:
    op = node.target
    return isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable and op is not torch.ops.aten.detach_.default


def _drop_detach(graph: fx.Graph) -> None:
    """Drops the `detach_` that `torch.tensor(...)` leaves in a graph: it writes no value."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.detach_.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _copy(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    result = copied.graph_copy(graph, values)
    copied.output(result).meta.update(output_of(graph).meta)
    return copied


def _settle_sizes(graph: fx.Graph) -> None:
    """Makes numbers of symbolic sizes that the model turned out to fix, so that they are guarded like any other."""
    for node in graph.nodes:
        if isinstance(value := node.meta.get("val"), torch.Tensor):
            node.meta["val"] = settled(value)


def _refuse_higher_order(root: fx.GraphModule) -> None:
    """Refuses operators of torch's that take functions and have no form here; drops the bodies of those that had one."""
    for node in root.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise DynamicControlFlowError(f"the graph holds {node.target.name()}", where=where(node))
    read = {node.target for node in root.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in root.named_children() if name not in read]:
        delattr(root, name)


def _drop_assertions_on_types(graph: fx.Graph) -> None:
    """Drops asserts on dtype and device of values whose type the compiler fixes anyway."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)


def _mutated_buffers(exported: ExportedProgram) -> set[str]:
    specs = exported.graph_signature.output_specs
    return {str(spec.target) for spec in specs if spec.kind is TorchOutput.BUFFER_MUTATION}


def _bind(
    root: fx.GraphModule, exported: ExportedProgram, paths: tuple[str, ...], mutated: set[str]
) -> tuple[tuple[InputSpec, ...], dict[str, torch.Tensor]]:
    inputs: list[InputSpec] = []
    tensors: dict[str, torch.Tensor] = {}
    leaf = iter(paths)
    placeholders = [node for node in root.graph.nodes if node.op == "placeholder"]
    for spec, placeholder in zip(exported.graph_signature.input_specs, placeholders, strict=True):
        kind = _KINDS.get(spec.kind)
        if kind is None:
            raise CaptureError(f"the model holds {spec.target}, a {spec.kind.name}", hint="replace it by tensors")
        if kind is InputKind.USER:
            source = next(leaf)
            if isinstance(spec.arg, ConstantArgument):
                continue
        else:
            source = str(spec.target)
            tensors[source] = _lookup(exported, source)
            kind = InputKind.STATE if source in mutated else kind
        # The copy may have another name than the original: fx keeps away from Python's own, such as `input`.
        inputs.append(InputSpec(placeholder.name, kind, source))
    return tuple(inputs), tensors


def _lookup(exported: ExportedProgram, source: str) -> torch.Tensor:
    found = exported.state_dict.get(source)
    if found is None:
        found = exported.constants[source]
    if not isinstance(found, torch.Tensor):
        raise CaptureError(f"the model holds {source}, a {type(found).__name__}", hint="replace it by tensors")
    return found


def _outputs(
    root: fx.GraphModule, exported: ExportedProgram, paths: tuple[str, ...]
) -> tuple[tuple[OutputSpec, ...], dict[int, Any]]:
    """The output specs; literal outputs are taken out of the graph."""
    user_paths = {
        spec.arg.name: path
        for spec, path in zip(
            (s for s in exported.graph_signature.input_specs if s.kind is TorchInput.USER_INPUT), paths, strict=True
        )
    }
    specs: list[OutputSpec] = []
    values: list[Any] = []
    literals: dict[int, Any] = {}
    leaf, rewriter = 0, Rewriter(root)
    for value, spec in zip(outputs_of(root.graph), exported.graph_signature.output_specs, strict=True):
        if spec.kind is TorchOutput.USER_OUTPUT:
            if isinstance(value, fx.Node):
                kind, held = _as_tensor(rewriter, value)
                specs.append(OutputSpec(OutputKind.USER, kind))
                values.append(held)
            else:
                literals[leaf] = value
            leaf += 1
        elif spec.kind is TorchOutput.BUFFER_MUTATION:
            specs.append(OutputSpec(OutputKind.STATE, spec.target))
            values.append(value)
        elif spec.kind is TorchOutput.USER_INPUT_MUTATION:
            specs.append(OutputSpec(OutputKind.INPUT, user_paths[str(spec.target)]))
            values.append(value)
        elif spec.kind.name == "PARAMETER_MUTATION":
            raise WeightChangedError(f"the model changes its weight {spec.target}")
        else:
            raise CaptureError(f"the model returns a {spec.kind.name}", hint="return tensors")
    output_of(root.graph).args = (tuple(values),)
    return tuple(specs), literals


def _as_tensor(rewriter: Rewriter, value: fx.Node) -> tuple[str | None, fx.Node]:
    """A size that is returned as a tensor of no dims, and what it is; a tensor, and a number that is read from one, as it is."""
    number = value.meta["val"]
    if isinstance(number, torch.Tensor) or free_unbacked_symbols(number):
        return None, value
    if not isinstance(number, torch.SymInt):
        raise CaptureError(
            "the model returns a number made of dynamic sizes that is no whole one",
            where=where(value),
            hint="return the sizes, and compute with them behind the model",
        )
    return "int", rewriter.emit(torch.ops.aten.scalar_tensor.default, value, dtype=torch.int64, like=value)


def _drop_unused(root: fx.GraphModule, inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...]) -> None:
    """Drops dead nodes and the placeholders of unused weights; user inputs and state stay, they are the interface."""
    drop_dead_nodes(root.graph)
    keep = {spec.name for spec in inputs if spec.kind in (InputKind.USER, InputKind.STATE)}
    for node in [n for n in root.graph.nodes if n.op == "placeholder"]:
        if not node.users and node.name not in keep:
            root.graph.erase_node(node)


def _dimensions(
    root: fx.GraphModule, inputs: tuple[InputSpec, ...], exported: ExportedProgram, names: Mapping[str, str]
) -> tuple[Dimension, ...]:
    positions: dict[str, list[tuple[str, int]]] = {}
    users = {spec.name for spec in inputs if spec.kind is InputKind.USER}
    for node in root.graph.nodes:
        if node.op == "placeholder" and node.name in users and isinstance(node.meta["val"], torch.Tensor):
            for dim, size in enumerate(node.meta["val"].shape):
                if isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
                    positions.setdefault(str(size.node.expr), []).append((node.name, dim))
    ranges = {str(symbol): bounds_of(symbol, bounds, -1) for symbol, bounds in exported.range_constraints.items()}
    return tuple(
        Dimension(names.get(symbol, symbol), symbol, *ranges[symbol], tuple(places))
        for symbol, places in positions.items()
    )
