"""`gaudicc profile`: a model under the machine model, before and after the split of attention, or a real trace; one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import gaudicc
from gaudicc.buckets import BucketForm
from gaudicc.cli.options_profile import ProfileOptions
from gaudicc.cli.output import live_passes, print_json, say
from gaudicc.cli.source import open_source, parse_bucket_entries, parse_dynamic
from gaudicc.errors import InputError
from gaudicc.machine import Chip, load_chip
from gaudicc.machine.fit import fit_observations, observed_error, save_chip
from gaudicc.modelled import modelled_run
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.split_attention import SplitAttention
from gaudicc.pipeline import Pass
from gaudicc.profile import Activity, Profile, profile_of
from gaudicc.profile.calibrate import observations
from gaudicc.profile.chrome import MODELLED, write_chrome
from gaudicc.profile.files import read_trace
from gaudicc.profile.modelled import activities_of
from gaudicc.profile.show import as_json, table
from gaudicc.profile.svg import write_svg
from gaudicc.program import Program
from gaudicc.targets import load_target

# Error of a fit from which on the trace is hardly one of the model.
_POOR = 0.2
_WHOLE, _SPLIT = "attention unsplit", "attention by cost"


def run(options: ProfileOptions) -> int:
    """Runs the command.

    Returns:
        The exit code, 0.

    Raises:
        GaudiccError: the model cannot be compiled, a trace cannot be read, or a file cannot be written.
    """
    _check(options)
    runs: list[tuple[str, Sequence[Activity]]] = []
    profiles: list[Profile] = []
    for file in (*options.read, *((options.calibrate,) if options.calibrate else ())):
        activities = read_trace(file)
        runs.append((file.name, activities))
        profiles.append(profile_of(activities, file.name, modelled=False))
    if options.model is not None:
        chip = _chip(options)
        programs = _programs(options, options.model)
        if options.calibrate is not None:
            chip = _calibrated(options, chip, programs[0][1], profiles[-1])
        for form, program in programs:
            modelled = modelled_run(program, chip, options.dtype)
            title = f"{form}, {options.dtype} projections" if options.dtype else form
            for place in modelled.branches:
                say(f"note: {title}: the host decides the condition at {place}; the side that takes longer is shown")
            runs.append((title + MODELLED, activities_of(modelled)))
            profiles.append(profile_of(runs[-1][1], title, modelled=True, bound=modelled.bound))
    if not profiles:
        raise InputError("nothing to profile", hint="name a model, or give a trace with --read")
    _write(options, runs)
    if options.json:
        print_json([as_json(profile) for profile in profiles])
    else:
        print(table(profiles))
    return 0


def _check(options: ProfileOptions) -> None:
    """Refuses options that mean nothing before a model is compiled for them."""
    if options.calibrate is not None and options.model is None:
        raise InputError("--calibrate needs the model that was traced", hint="name it, with its sizes")
    if options.bucket is not None and not options.dynamic:
        raise InputError("a bucket is named, but no size varies", hint="say which does: --dynamic sequence=MAX")
    if options.runs < 1:
        raise InputError("a trace holds one run or more", hint="give --runs 1 or more")
    if options.runs > 1 and options.calibrate is None:
        raise InputError("--runs counts the runs in a trace to calibrate by", hint="name it: --calibrate TRACE")
    if options.node_us is not None and not 0 <= options.node_us < inf:
        raise InputError(f"a node cannot start in {options.node_us} us", hint="give --node-us 0 or more")


def _calibrated(options: ProfileOptions, chip: Chip, program: Program, trace: Profile) -> Chip:
    """The chip with the constants that the trace shows, which are written and said."""
    shown = observations(modelled_run(program, chip).works, trace, options.runs)
    fitted = fit_observations(chip, shown)
    names = [name for each in shown for name in each.constants]
    source = f"gaudicc profile {options.model} --calibrate {trace.title}"
    path = save_chip(options.into, fitted, names, source)
    for name in names:
        say(f"{name}: {chip.value(name):.4g} -> {fitted.value(name):.4g}")
    before, after = (observed_error(shown, each) for each in (chip, fitted))
    say(f"error on {len(shown)} times of the trace: {before:.1%} -> {after:.1%}; wrote {path}")
    if after > _POOR:
        say(f"note: no constants explain these times; is {trace.title} a trace of {options.model} at these sizes?")
    return fitted


def _programs(options: ProfileOptions, model: str) -> list[tuple[str, Program]]:
    """The bucket's program as it is without split-attention, and with it."""
    load_target(options.target)
    sizes = {"batch": options.batch, "sequence": options.sequence}
    source = open_source(model, **sizes, trust=options.trust)
    dynamic = parse_dynamic(options.dynamic, source, **sizes)
    buckets: BucketForm = parse_bucket_entries((options.bucket,) if options.bucket else ())
    found = []
    for title, step in ((_WHOLE, SplitAttention(most_slices=1)), (_SPLIT, SplitAttention())):
        say(f"compiling {model} for {options.target}: {title}")
        with live_passes() as observer:
            compiled = gaudicc.compile(
                source.model, dict(source.inputs), dynamic_shapes=dynamic, target=options.target, buckets=buckets,
                device="cpu", passes=_with(step), observer=observer,
            )  # fmt: skip
        bucket = next(iter(compiled.buckets))
        found.append((title, compiled.static_program(bucket)))
        for record in compiled.trace:
            if record.name == step.name and step.most_slices > 1:
                say("\n".join(f"note: {note}" for note in record.notes))
    return found


def _with(step: SplitAttention) -> list[Pass]:
    return [step if isinstance(entry, SplitAttention) else entry for entry in DEFAULT_PIPELINE]


def _chip(options: ProfileOptions) -> Chip:
    chip = load_chip(options.target)
    if options.node_us is None:
        return chip
    return chip.with_value("host.node_seconds", options.node_us * 1e-6)


def _write(options: ProfileOptions, runs: list[tuple[str, Sequence[Activity]]]) -> None:
    aligned = [(title, _from_zero(activities)) for title, activities in runs]
    try:
        if options.trace is not None:
            write_chrome(options.trace, aligned)
            say(f"wrote {options.trace}")
        if options.svg is not None:
            write_svg(options.svg, aligned)
            say(f"wrote {options.svg}")
    except OSError as error:
        raise InputError(f"cannot write {error.filename}: {error.strerror}", hint="give another path") from error


def _from_zero(activities: Sequence[Activity]) -> list[Activity]:
    """The same, with time counted from the first start."""
    first = min(entry.start for entry in activities)
    return [replace(entry, start=entry.start - first, end=entry.end - first) for entry in activities]
