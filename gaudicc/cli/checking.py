"""`gaudicc check`: a model -> its findings."""

from __future__ import annotations

from gaudicc.checker import check
from gaudicc.cli.options import CheckOptions
from gaudicc.cli.output import print_json, say
from gaudicc.cli.source import open_source, parse_dynamic
from gaudicc.targets import load_target


def run(options: CheckOptions) -> int:
    """Runs the command.

    Returns:
        The exit code, 0: findings are its result, not a failure.

    Raises:
        GaudiccError: the model cannot be found, or its inputs do not fit.
    """
    load_target(options.target)  # before a model is loaded, which may take long
    sizes = {"batch": options.batch, "sequence": options.sequence}
    source = open_source(options.model, **sizes, trust=options.trust)
    say(f"checking {options.model} on {options.target}")
    dynamic = parse_dynamic(options.dynamic, source, **sizes)
    findings = check(source.model, dict(source.inputs), dynamic_shapes=dynamic, target=options.target)
    if options.json:
        print_json({"model": options.model, **findings.as_json()})
    else:
        print(findings)
    return 0
