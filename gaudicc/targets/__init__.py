"""What each chip and software release is known to run: asked by rules, passes, invariants, the interpreter and `check`.

`load_target` gives a `Target`; `target.lookup` answers with a `Verdict`. The data are `gaudi2.json` and `gaudi3.json`,
made by `make_tables`, and two overlays: `supplement.json` (facts the tables miss) and `reported_bad.json`. torch is not
imported here; `gaudicc.targets.calls` and `gaudicc.targets.findings`, which look at real calls, do.
"""

from gaudicc.targets.model import Engine, Mode, Support, Verdict
from gaudicc.targets.target import Target, load_target, op_name

__all__ = ["Engine", "Mode", "Support", "Target", "Verdict", "load_target", "op_name"]
