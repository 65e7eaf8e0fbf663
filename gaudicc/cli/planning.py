"""`gaudicc plan`: the plan of every bucket, and whether all of it fits on so many cards."""

from __future__ import annotations

from gaudicc.cli.compiling import compile_model
from gaudicc.cli.options_plan import PlanOptions
from gaudicc.cli.output import print_json
from gaudicc.errors import InputError
from gaudicc.lower import lower
from gaudicc.runtime.hpu_plan import plan_memory


def run(options: PlanOptions) -> int:
    """Runs the command.

    Returns:
        The exit code, 0.

    Raises:
        GaudiccError: the model cannot be found, captured or compiled.
    """
    if options.cards < 1:
        raise InputError(f"cards is {options.cards}", hint="give 1 or more")
    compiled = compile_model(options, "planning", device="cpu")
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
