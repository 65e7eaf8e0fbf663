"""Bundle: one Program <-> JSON: its graphs, its signature, and how it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from gaudicc.bundle import calling, graphs, literals
from gaudicc.bundle.formulas import guard_text
from gaudicc.bundle.item import Item
from gaudicc.bundle.sizes import SizeReader, SizeWriter
from gaudicc.bundle.tensors import TensorWriter
from gaudicc.errors import TargetError
from gaudicc.nodes import outputs_of
from gaudicc.program import Dimension, Guard, InputKind, InputSpec, OutputKind, OutputSpec, Program
from gaudicc.targets import Target, load_target

_INPUTS = {kind.name.lower(): kind for kind in InputKind}
_OUTPUTS = {kind.name.lower(): kind for kind in OutputKind}
_FIELDS = (
    "target", "inputs", "outputs", "tensors", "example", "calling", "dimensions", "guards", "notes", "symbols",
    "graphs", "padded",
)  # fmt: skip


def encode(key: str, program: Program, tensors: TensorWriter) -> dict[str, object]:
    """A program as JSON.

    Args:
        key: its name in the bundle.
        program: the program.
        tensors: collects its tensors.

    Raises:
        TypeError: the program holds what no bundle can hold.
    """
    sizes = SizeWriter()
    modules = [module for _, module in program.graphs()]
    numbers = {id(module): number for number, module in enumerate(modules)}
    return {
        "target": program.target.name if program.target else None,
        "inputs": [{"name": s.name, "kind": s.kind.name.lower(), "source": s.source} for s in program.inputs],
        "outputs": [{"kind": s.kind.name.lower(), "target": s.target} for s in program.outputs],
        "tensors": {source: tensors.add(source, tensor) for source, tensor in program.tensors.items()},
        "example": {
            name: {"tensor": tensors.add(f"example {key} {name}", value)}
            if isinstance(value, torch.Tensor)
            else {"literal": literals.encode(value)}
            for name, value in program.example.items()
        },
        "calling": calling.encode(program.calling),
        "dimensions": [
            {
                "name": d.name,
                "symbol": d.symbol,
                "low": d.low,
                "high": d.high,
                "positions": [list(p) for p in d.positions],
            }
            for d in program.dimensions
        ],
        "padded": calling.encode_padded(program.padded),
        "guards": [{"text": guard.text, "reason": guard.reason} for guard in program.guards],
        "notes": list(program.notes),
        "graphs": [graphs.encode(module, numbers, sizes) for module in modules],
        "symbols": dict(sorted(sizes.symbols.items())),
    }


def decode(item: Item, tensors: Sequence[torch.Tensor]) -> Program:
    """A program from JSON.

    Args:
        item: the JSON.
        tensors: the bundle's tensors by number.

    Raises:
        BundleError: the JSON is no program, or its parts disagree.
    """
    fields = item.fields(_FIELDS)
    sizes = SizeReader(fields["symbols"])
    modules: list[fx.GraphModule] = []
    for graph in fields["graphs"].items():
        modules.append(graphs.decode(graph, modules, sizes))
    if not modules:
        fields["graphs"].fail("a program has at least one graph")
    named = fields["tensors"].entries()
    program = Program(
        root=modules[-1],
        inputs=tuple(_decode_input(entry) for entry in fields["inputs"].items()),
        outputs=tuple(_decode_output(entry) for entry in fields["outputs"].items()),
        tensors={source: tensors[number.index(len(tensors), "tensor")] for source, number in named.items()},
        calling=calling.decode(fields["calling"]),
        dimensions=tuple(_decode_dimension(entry) for entry in fields["dimensions"].items()),
        guards=tuple(_decode_guard(entry) for entry in fields["guards"].items()),
        target=_decode_target(fields["target"]),
        example={name: _decode_example(entry, tensors) for name, entry in fields["example"].entries().items()},
        notes=tuple(note.text() for note in fields["notes"].items()),
    )
    _check_signature(fields, program)
    program.padded = calling.decode_padded(fields["padded"], len(program.user_inputs()), len(program.outputs))
    _check_bound(fields, program)
    _check_caches(fields, program)
    return program


def _decode_input(item: Item) -> InputSpec:
    fields = item.fields(("name", "kind", "source"))
    kind = _INPUTS[fields["kind"].choice(_INPUTS, "kind of input")]
    return InputSpec(fields["name"].identifier(), kind, fields["source"].text())


def _decode_output(item: Item) -> OutputSpec:
    fields = item.fields(("kind", "target"))
    kind = _OUTPUTS[fields["kind"].choice(_OUTPUTS, "kind of output")]
    return OutputSpec(kind, None if fields["target"].value is None else fields["target"].text())


def _decode_dimension(item: Item) -> Dimension:
    fields = item.fields(("name", "symbol", "low", "high", "positions"))
    pairs = [pair.items(2) for pair in fields["positions"].items()]
    return Dimension(
        name=fields["name"].text(),
        symbol=fields["symbol"].identifier(),
        low=fields["low"].integer(-1, 2**63),
        high=fields["high"].integer(-1, 2**63),  # capture writes -1 where there is no bound
        positions=tuple((name.text(), dim.integer(0, 64)) for name, dim in pairs),
    )


def _decode_guard(item: Item) -> Guard:
    fields = item.fields(("text", "reason"))
    return Guard(guard_text(fields["text"]), fields["reason"].text())


def _decode_target(item: Item) -> Target | None:
    if item.value is None:
        return None
    try:
        return load_target(item.text())
    except TargetError as problem:
        item.fail(problem.what)


def _decode_example(item: Item, tensors: Sequence[torch.Tensor]) -> Any:
    fields = item.fields((), ("tensor", "literal"))
    if len(fields) != 1:
        item.fail("an example is a tensor or a literal")
    if "tensor" in fields:
        return tensors[fields["tensor"].index(len(tensors), "tensor")]
    return literals.decode(fields["literal"])


def _check_signature(fields: Mapping[str, Item], program: Program) -> None:
    """The graph, the specs and the calling convention agree in number and names."""
    placeholders = [node.name for node in program.root.graph.nodes if node.op == "placeholder"]
    if placeholders != [spec.name for spec in program.inputs]:
        fields["inputs"].fail("the inputs differ from those of the root graph")
    if len(outputs_of(program.root.graph)) != len(program.outputs):
        fields["outputs"].fail("the outputs differ in number from those of the root graph")
    user = sum(spec.kind is OutputKind.USER for spec in program.outputs)
    inserted = {*program.calling.literals, *(cache.result for cache in program.calling.caches)}
    if user + len(inserted) != program.calling.out_spec.num_leaves:
        fields["calling"].fail("the outputs do not fill the output's structure")
    for what, names in (("input", program.inputs), ("dimension", program.dimensions)):
        if len({spec.name for spec in names}) != len(names):
            fields[f"{what}s"].fail(f"two {what}s have the same name")


def _check_caches(fields: Mapping[str, Item], program: Program) -> None:
    """Every cache that is held is a state buffer with the dim that grows, and has a dimension for its rows."""
    names = {dim.name for dim in program.dimensions}
    state = {spec.source for spec in program.inputs if spec.kind is InputKind.STATE}
    for cache in program.calling.caches:
        known = cache.state in state and (cache.dimension in names or not names)  # a bucket's program has none left
        if not known or cache.dim >= program.tensors[cache.state].dim():
            fields["calling"].fail(f"{cache.state!r:.80} is no state that grows along {cache.dimension!r:.80}")


def _check_bound(fields: Mapping[str, Item], program: Program) -> None:
    """Every weight, state buffer, constant and example is what its placeholder says."""
    values: dict[str, Any] = dict(program.example)
    for spec in program.inputs:
        if spec.kind is InputKind.LENGTH:
            given = spec.name in program.example  # a bucket's program has no dimensions left
            if not given and not any(dim.name == spec.source and dim.positions for dim in program.dimensions):
                fields["inputs"].fail(f"there is no dimension {spec.source!r:.80}")
        elif spec.kind is not InputKind.USER and spec.source not in program.tensors:
            fields["tensors"].fail(f"there is no tensor for {spec.source!r:.80}")
    values.update(program.bound())
    for node in program.root.graph.nodes:
        declared, value = node.meta.get("val"), values.get(node.name)
        if node.op == "placeholder" and isinstance(value, torch.Tensor) and isinstance(declared, torch.Tensor):
            same = value.dim() == declared.dim() and value.dtype == declared.dtype
            pairs = zip(value.shape, declared.shape, strict=True) if same else ()
            if not same or any(isinstance(size, int) and size != actual for actual, size in pairs):
                found, told = f"{value.dtype}{list(value.shape)}", f"{declared.dtype}{list(declared.shape)}"
                fields["tensors"].fail(f"{node.name} is {found}, its graph says {told}")
