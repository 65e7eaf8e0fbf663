"""`gaudicc plan`: the plan of every bucket, and whether all of it fits on so many cards."""

from __future__ import annotations

from collections.abc import Mapping

from gaudicc.buckets import Bucket
from gaudicc.cli.compiling import compile_model
from gaudicc.cli.options_plan import PlanOptions
from gaudicc.cli.output import print_json, say
from gaudicc.cli.source import open_source
from gaudicc.errors import InputError
from gaudicc.lower import lower
from gaudicc.program import Program
from gaudicc.runtime.hpu_plan import plan_memory


def run(options: PlanOptions) -> int:
    """Runs the command.

    Returns:
        The exit code: 0, or 1 if `--memory` finds that the model does not fit.

    Raises:
        GaudiccError: the model cannot be found, captured or compiled, or an option has no meaning.
    """
    if options.cards < 1:
        raise InputError(f"cards is {options.cards}", hint="give 1 or more")
    programs = _generation(options) if options.generate else _forward(options)
    # A Gaudi records no loop.
    plans = {bucket: lower(program, bucket, loops=False) for bucket, program in programs.items()}
    if options.memory:
        memory = plan_memory(programs, plans, options.target, options.cards)
        print_json(memory.as_json()) if options.json else print(memory)
        return 0 if memory.fits else 1
    texts: Mapping[str, str] = {str(bucket): str(plan) for bucket, plan in plans.items()}
    print_json(texts) if options.json else print("\n\n".join(texts.values()))
    return 0


def _forward(options: PlanOptions) -> dict[Bucket, Program]:
    compiled = compile_model(options, "planning", device="cpu")
    return {bucket: compiled.static_program(bucket) for bucket in compiled.buckets}


def _generation(options: PlanOptions) -> dict[Bucket, Program]:
    """The buckets of `compile_lm`: those of prefill and of decode have other dims, so that their names differ."""
    from gaudicc.cli.planning_lm import PlannedLM, shape_model, shapes

    if options.max_batch < 1 or options.max_context < 2 or options.dynamic or options.buckets:
        raise InputError(
            "with --generate, max-batch is 1 or more, max-context 2 or more, and compile_lm chooses the buckets",
            hint="leave --dynamic and --buckets out",
        )
    if options.model in shapes():
        model = shape_model(options.model)
    else:
        model = open_source(options.model, batch=options.batch, sequence=options.sequence, trust=options.trust).model
    lm = PlannedLM(model, max_batch=options.max_batch, max_context=options.max_context, target=options.target)
    programs = {}
    every = list(lm.buckets())
    for done, (kind, bucket) in enumerate(every, 1):
        say(f"planning {kind} {bucket} ({done} of {len(every)})")
        programs[bucket] = lm.program(kind, bucket)
    return programs
