"""Bundle: how a program is called, and how its inputs and outputs are padded, <-> JSON."""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Mapping
from typing import Any

from gaudicc.bundle import literals, trees
from gaudicc.bundle.formulas import size_text
from gaudicc.bundle.item import Item
from gaudicc.calling import Calling, GrowingCache, Parameter, Raise
from gaudicc.errors import InputError, Where
from gaudicc.padding import Edit, OutputProof, PadCertificate
from gaudicc.program import PadRecord

_KINDS = [
    name for name, kind in vars(inspect.Parameter).items() if isinstance(kind, type(inspect.Parameter.KEYWORD_ONLY))
]

_EXCEPTIONS = {
    name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)
}


def encode(calling: Calling) -> dict[str, object]:
    """A calling convention as JSON.

    Raises:
        TypeError: a static value, literal or default is of a type that no bundle holds.
        InputError: a function is run on the host before each call.
    """
    for call in calling.hosted:
        raise InputError(
            f"{call.function.__name__} is run on the host before each call, and a bundle holds no code",
            where=Where(stage="save"),
            hint="call it yourself, and compile a model that takes what it computes",
        )
    return {
        "in_spec": trees.encode(calling.in_spec),
        "paths": list(calling.paths),
        "static": [[leaf, literals.encode(value)] for leaf, value in sorted(calling.static.items())],
        "out_spec": trees.encode(calling.out_spec),
        "literals": [[leaf, literals.encode(value)] for leaf, value in sorted(calling.literals.items())],
        "parameters": [
            {"name": p.name, "kind": p.kind, "required": p.required, "default": literals.encode(p.default)}
            for p in calling.parameters
        ],
        "raises": [_encode_raise(entry) for entry in calling.raises],
        "caches": [
            {
                "state": c.state,
                "argument": c.argument,
                "result": c.result,
                "dim": c.dim,
                "dimension": c.dimension,
                "grown": c.grown,
            }
            for c in calling.caches
        ],
    }


def decode(item: Item) -> Calling:
    """A calling convention from JSON.

    Raises:
        BundleError: the JSON is none, or its parts disagree.
    """
    required = ("in_spec", "paths", "static", "out_spec", "literals", "parameters", "raises")
    fields = item.fields(required, ("caches",))  # older bundles hold none
    caches = fields["caches"].items() if "caches" in fields else []
    in_spec, out_spec = trees.decode(fields["in_spec"]), trees.decode(fields["out_spec"])
    paths = tuple(path.text() for path in fields["paths"].items())
    if len(paths) != in_spec.num_leaves:
        fields["paths"].fail(f"{len(paths)} paths for {in_spec.num_leaves} leaves")
    calling = Calling(
        in_spec=in_spec,
        paths=paths,
        static=_leaves(fields["static"], in_spec.num_leaves),
        out_spec=out_spec,
        literals=_leaves(fields["literals"], out_spec.num_leaves),
        parameters=tuple(_parameter(entry) for entry in fields["parameters"].items()),
        raises=tuple(_decode_raise(entry) for entry in fields["raises"].items()),
        caches=tuple(_cache(entry, in_spec.num_leaves, out_spec.num_leaves) for entry in caches),
    )
    try:
        _ = calling.signature
    except ValueError as problem:
        fields["parameters"].fail(f"this is no signature: {problem}")
    return calling


def _encode_raise(entry: Raise) -> dict[str, object]:
    """An exception as JSON: Python's own by name; the class of any other is code, and only its name and text are kept."""
    kind, args = type(entry.error), entry.error.args
    if _EXCEPTIONS.get(kind.__name__) is not kind or not all(isinstance(arg, (str, int, float)) for arg in args):
        kind, args = Exception, (f"{kind.__name__}: {entry.error}",)
    return {"kind": kind.__name__, "args": [literals.encode(arg) for arg in args], "source": entry.source}


def _decode_raise(item: Item) -> Raise:
    fields = item.fields(("kind", "args", "source"))
    kind = fields["kind"].choice(_EXCEPTIONS, "exception of Python")
    args = [literals.decode(arg) for arg in fields["args"].items()]
    try:
        return Raise(_EXCEPTIONS[kind](*args), fields["source"].text())
    except (TypeError, ValueError) as problem:
        fields["args"].fail(f"{kind} takes other arguments: {problem}")


def _cache(item: Item, arguments: int, results: int) -> GrowingCache:
    fields = item.fields(("state", "argument", "result", "dim", "dimension", "grown"))
    return GrowingCache(
        state=fields["state"].text(),
        argument=fields["argument"].index(arguments, "leaf"),
        result=fields["result"].index(results, "leaf"),
        dim=fields["dim"].integer(0, 64),
        dimension=fields["dimension"].text(),
        grown=size_text(fields["grown"]),
    )


def _leaves(item: Item, count: int) -> Mapping[int, Any]:
    pairs = [pair.items(2) for pair in item.items()]
    found = {leaf.index(count, "leaf"): literals.decode(value) for leaf, value in pairs}
    if len(found) != len(pairs):
        item.fail("a leaf has two values")
    return found


def _parameter(item: Item) -> Parameter:
    fields = item.fields(("name", "kind", "required", "default"))
    kind = fields["kind"].choice(_KINDS, "kind of parameter")
    name, required = fields["name"].identifier(), fields["required"].boolean()
    return Parameter(name, kind, required, literals.decode(fields["default"]))


def encode_padded(padded: PadRecord | None) -> object:
    """A record of padding as JSON."""
    if padded is None:
        return None
    proof = padded.certificate
    return {
        "outputs": [[list(factors) for factors in dims] for dims in padded.outputs],
        "inputs": [list(dims) for dims in padded.inputs],
        "certificate": None
        if proof is None
        else {
            "outputs": [{"name": o.name, "dims": list(o.dims), "proved": o.proved} for o in proof.outputs],
            "edits": [{"what": e.what, "op": e.op, "reason": e.reason, "source": e.source} for e in proof.edits],
            "finite": list(proof.finite),
            "strict": proof.strict,
        },
    }


def decode_padded(item: Item, inputs: int, outputs: int) -> PadRecord | None:
    """A record of padding from JSON.

    Args:
        item: the JSON.
        inputs: how many user inputs the program has.
        outputs: how many outputs.

    Raises:
        BundleError: the JSON is none, or is of another program.
    """
    if item.value is None:
        return None
    fields = item.fields(("outputs", "inputs", "certificate"))
    return PadRecord(
        outputs=tuple(
            tuple(tuple(size_text(factor) for factor in dim.items()) for dim in dims.items())
            for dims in fields["outputs"].items(outputs)
        ),
        inputs=tuple(tuple(size_text(size) for size in dims.items()) for dims in fields["inputs"].items(inputs)),
        certificate=None if fields["certificate"].value is None else _certificate(fields["certificate"]),
    )


def _certificate(item: Item) -> Any:
    fields = item.fields(("outputs", "edits", "finite", "strict"))
    proofs = [entry.fields(("name", "dims", "proved")) for entry in fields["outputs"].items()]
    edits = [entry.fields(("what", "op", "reason", "source")) for entry in fields["edits"].items()]
    return PadCertificate(
        outputs=tuple(
            OutputProof(p["name"].text(), tuple(dim.text() for dim in p["dims"].items()), p["proved"].text())
            for p in proofs
        ),
        edits=tuple(
            Edit(
                e["what"].text(),
                e["op"].text(),
                e["reason"].text(),
                None if e["source"].value is None else e["source"].text(),
            )
            for e in edits
        ),
        finite=tuple(place.text() for place in fields["finite"].items()),
        strict=fields["strict"].boolean(),
    )
