"""`gaudicc run`: a bundle or a model -> its outputs; the sentence encoder -> a ranking."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

import gaudicc
from gaudicc.buckets import Bucket
from gaudicc.cli.options import RunOptions
from gaudicc.cli.output import live_passes, print_json, say
from gaudicc.cli.ranking import rank_file
from gaudicc.cli.source import Source, is_bundle, open_source
from gaudicc.compiled import CompiledModel
from gaudicc.errors import InputError
from gaudicc.nodes import val
from gaudicc.program import Program
from gaudicc.targets import load_target

ENCODER = "sentence-encoder"


def run(options: RunOptions) -> int:
    """Runs the command.

    Returns:
        The exit code, 0.

    Raises:
        GaudiccError: the model or bundle cannot be found, compiled or run.
    """
    load_target(options.target)  # before a model is loaded, which may take long
    if options.model == ENCODER:
        return rank_file(options)
    if options.query is not None or options.file is not None:
        raise InputError(f"--query and --file are for {ENCODER} only", hint=f"gaudicc run {ENCODER} --query ...")
    if is_bundle(options.model):
        return _run_bundle(options)
    source = open_source(options.model, batch=options.batch, sequence=options.sequence, trust=options.trust)
    say(f"compiling {options.model} for {options.target}")
    with live_passes() as observer:
        compiled = gaudicc.compile(source.model, dict(source.inputs), target=options.target, observer=observer)
    difference = None
    if source.inputs:
        result = compiled(**source.inputs)
        difference = _difference(source, result) if options.compare else None
    elif options.compare:
        raise InputError("--compare needs the model itself", hint="compare a model given by name or folder")
    else:
        args, kwargs = random_inputs(compiled.program, next(iter(compiled.buckets)))
        result = compiled(*args, **kwargs)
    return _print(options, compiled, [("", result)], difference)


def _run_bundle(options: RunOptions) -> int:
    if options.compare:
        raise InputError("a bundle holds no eager model to compare with", hint="leave --compare out")
    compiled = gaudicc.load(options.model)
    results = []
    for bucket in compiled.buckets:
        args, kwargs = random_inputs(compiled.program, bucket)
        results.append((str(bucket), compiled(*args, **kwargs)))
    return _print(options, compiled, results, None)


def random_inputs(program: Program, bucket: Bucket) -> tuple[Any, Any]:
    """Seeded random arguments of a program's signature, at the sizes of a bucket.

    Integers are 0 or 1, which are valid as ids, masks and positions alike.

    Returns:
        args and kwargs.
    """
    sizes = bucket.as_dict()
    dims = {place: sizes[dim.name] for dim in program.dimensions for place in dim.positions}
    fakes = {node.name: val(node) for node in program.root.graph.nodes if node.op == "placeholder"}
    generator = torch.Generator().manual_seed(0)
    leaves = [program.calling.static.get(index) for index in range(len(program.calling.paths))]
    for spec in program.user_inputs():
        fake = fakes[spec.name]
        shape = [dims.get((spec.name, i), size) for i, size in enumerate(fake.shape)]
        if fake.dtype.is_floating_point or fake.dtype.is_complex:
            tensor = torch.randn(shape, generator=generator, dtype=torch.float32).to(fake.dtype)
        else:
            tensor = torch.randint(0, 2, shape, generator=generator).to(fake.dtype)
        leaves[program.calling.paths.index(spec.source)] = tensor
    args, kwargs = pytree.tree_unflatten(leaves, program.calling.in_spec)
    return args, kwargs


def _difference(source: Source, result: Any) -> float:
    with torch.no_grad():
        eager = source.model(**source.inputs)
    pairs = zip(pytree.tree_leaves(eager), pytree.tree_leaves(result), strict=True)
    gaps = [(a.double() - b.double()).abs().max().item() for a, b in pairs if isinstance(a, torch.Tensor) and a.numel()]
    return max(gaps, default=0.0)


def _print(
    options: RunOptions, compiled: CompiledModel, results: list[tuple[str, Any]], difference: float | None
) -> int:
    outputs = [
        {
            "bucket": bucket,
            "output": pytree.keystr(path),
            "dtype": str(leaf.dtype).removeprefix("torch."),
            "shape": list(leaf.shape),
        }
        for bucket, result in results
        for path, leaf in pytree.tree_flatten_with_path(result)[0]
        if isinstance(leaf, torch.Tensor)
    ]
    if options.json:
        print_json({"model": options.model, "outputs": outputs, "max_abs_difference": difference})
        return 0
    for entry in outputs:
        print(f"{entry['bucket']}\t{entry['output'] or 'output'}\t{entry['dtype']}{entry['shape']}".lstrip("\t"))
    if difference is not None:
        print(f"largest difference from eager: {difference:.3g}")
    for note in compiled.notes:
        say(f"note: {note}")
    return 0
