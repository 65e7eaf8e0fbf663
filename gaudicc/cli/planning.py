"""`gaudicc plan`: the plan of every bucket, and whether all of it fits on so many cards."""

from __future__ import annotations

import gaudicc
from gaudicc.cli.options_plan import PlanOptions
from gaudicc.cli.output import live_passes, print_json, say
from gaudicc.cli.source import open_source, parse_bucket_entries, parse_dynamic
from gaudicc.errors import InputError
from gaudicc.lower import lower
from gaudicc.runtime.hpu_plan import plan_memory
from gaudicc.targets import load_target


def run(options: PlanOptions) -> int:
    """Runs the command.

    Returns:
        The exit code, 0.

    Raises:
        GaudiccError: the model cannot be found, captured or compiled.
    """
    load_target(options.target)  # before a model is loaded, which may take long
    if options.cards < 1:
        raise InputError(f"cards is {options.cards}", hint="give 1 or more")
    sizes = {"batch": options.batch, "sequence": options.sequence}
    buckets = parse_bucket_entries(options.buckets)
    source = open_source(options.model, **sizes, trust=options.trust)
    say(f"planning {options.model} for {options.target}")
    dynamic = parse_dynamic(options.dynamic, source, **sizes)
    with live_passes() as observer:
        compiled = gaudicc.compile(
            source.model, dict(source.inputs), dynamic_shapes=dynamic, target=options.target, buckets=buckets,
            observer=observer, device="cpu",
        )  # fmt: skip
    programs = {bucket: compiled.static_program(bucket) for bucket in compiled.buckets}
    # A Gaudi records no loop.
    plans = {bucket: lower(program, bucket, loops=False) for bucket, program in programs.items()}
    if not options.memory:
        texts = {str(bucket): str(plan) for bucket, plan in plans.items()}
        print_json(texts) if options.json else print("\n\n".join(texts.values()))
        return 0
    memory = plan_memory(programs, plans, options.target, options.cards)
    print_json(memory.as_json()) if options.json else print(memory)
    return 0
