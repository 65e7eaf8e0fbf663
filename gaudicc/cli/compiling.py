"""`gaudicc compile`: a model -> the table of its passes; a dump, a report and a bundle where asked for."""

from __future__ import annotations

import os
import sys
from typing import Any

import gaudicc
from gaudicc.cli.options import CompileOptions
from gaudicc.cli.options_plan import PlanOptions
from gaudicc.cli.output import live_passes, print_json, say
from gaudicc.cli.source import open_source, parse_bucket_entries, parse_dynamic
from gaudicc.compiled import CompiledModel
from gaudicc.errors import InputError
from gaudicc.targets import load_target


def compile_model(options: CompileOptions | PlanOptions, doing: str, **how: Any) -> CompiledModel:
    """Compiles the model that a command names, with its sizes and buckets.

    Args:
        options: of the command.
        doing: what the command does, for the user to read meanwhile.
        **how: more arguments of `gaudicc.compile`.

    Raises:
        GaudiccError: the model cannot be found, captured or compiled.
    """
    load_target(options.target)  # before a model is loaded, which may take long
    sizes = {"batch": options.batch, "sequence": options.sequence}
    buckets = parse_bucket_entries(options.buckets)
    source = open_source(options.model, **sizes, trust=options.trust)
    say(f"{doing} {options.model} for {options.target}")
    dynamic = parse_dynamic(options.dynamic, source, **sizes)
    with live_passes() as observer:
        return gaudicc.compile(
            source.model, dict(source.inputs), dynamic_shapes=dynamic, target=options.target, buckets=buckets,
            observer=observer, **how,
        )  # fmt: skip


def run(options: CompileOptions) -> int:
    """Runs the command.

    Returns:
        The exit code, 0.

    Raises:
        GaudiccError: the model cannot be found, captured or compiled, or a file cannot be written.
    """
    compiled = compile_model(options, "compiling", verify=options.verify, branches=options.branches)
    diffs = _diffs(options, compiled)
    written = _write(options, compiled)
    if options.json:
        print_json(_as_json(options, compiled, written))
    else:
        print(compiled.trace)
        names = "; ".join(str(bucket) for bucket in compiled.buckets) if compiled.buckets.dims else "one, static"
        print("".join(f"\n{diff}\n" for diff in diffs) + f"\nbuckets: {names}\n\n{compiled.certificate}")
    for note in compiled.notes:
        say(f"note: {note}")
    return 0


def _diffs(options: CompileOptions, compiled: CompiledModel) -> list[str]:
    if options.diff is None:
        return []
    if options.diff not in compiled.trace.names():
        raise InputError(f"no pass {options.diff!r} ran", hint=f"the passes are {', '.join(compiled.trace.names())}")
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    records = [record for record in compiled.trace if record.name == options.diff]
    return [record.diff(colour=colour) or f"{record.name} changed nothing" for record in records]


def _write(options: CompileOptions, compiled: CompiledModel) -> dict[str, str]:
    written: dict[str, str] = {}
    try:
        if options.dump is not None:
            compiled.trace.dump(options.dump)
            written["dump"] = str(options.dump)
        if options.report is not None:
            written["report"] = str(compiled.report(options.report))
        if options.save is not None:
            compiled.save(options.save)
            written["bundle"] = str(options.save)
    except OSError as error:
        raise InputError(f"cannot write {error.filename}: {error.strerror}", hint="give another path") from error
    for kind, place in written.items():
        say(f"wrote {kind} {place}")
    return written


def _as_json(options: CompileOptions, compiled: CompiledModel, written: dict[str, str]) -> dict[str, Any]:
    return {
        "model": options.model,
        "target": options.target,
        "passes": [record.as_json() for record in compiled.trace],
        "buckets": [bucket.as_dict() for bucket in compiled.buckets],
        "guards": compiled.guards.splitlines(),
        "certificate": compiled.certificate.as_json(),
        "notes": list(compiled.notes),
        "written": written,
    }
