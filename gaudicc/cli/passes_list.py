"""`gaudicc passes`: the default pipeline, printed from the declarations of its passes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gaudicc.cli.options import PassesOptions
from gaudicc.cli.output import print_json
from gaudicc.invariants import Invariant
from gaudicc.passes import STATIC, SYMBOLIC
from gaudicc.pipeline import Pass


def run(options: PassesOptions) -> int:
    """Runs the command.

    Returns:
        The exit code, 0.
    """
    entries = [_entry(step, "once, symbolic shapes") for step in SYMBOLIC]
    entries += [_entry(step, "per bucket, static shapes") for step in STATIC]
    if options.json:
        print_json(entries)
        return 0
    for number, entry in enumerate(entries, 1):
        print(f"{number:2}  {entry['name']}  ({entry['runs']}; {entry['numerics']})")
        print(f"      {entry['summary']}")
        for relation in ("requires", "ensures", "breaks"):
            print(f"      {relation:9}{', '.join(entry[relation]) or '-'}")
    return 0


def _entry(step: Pass, runs: str) -> dict[str, Any]:
    return {
        "name": step.name,
        "runs": runs,
        "summary": (type(step).__doc__ or "").strip().splitlines()[0],
        "numerics": step.numerics.value,
        "requires": _names(step.requires),
        "ensures": _names(step.ensures),
        "breaks": _names(step.breaks),
    }


def _names(invariants: Iterable[Invariant]) -> list[str]:
    return sorted(invariant.name for invariant in invariants)
