"""The table of padding rules: op -> rule. Its rows are printed as docs/tables/padding_rules.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gaudicc.padding.rules import (
    contractions,
    convolutions,
    experts,
    factories,
    fillings,
    indexing,
    losses,
    medians,
    mirrors,
    norms,
    ordering,
    pixels,
    pointwise,
    positions,
    reductions,
    strides,
    transforms,
    views,
    windows,
    writes,
)
from gaudicc.padding.rules.rule import Rule

FAMILIES: dict[str, tuple[Rule, ...]] = {
    "pointwise": pointwise.RULES,
    "views": views.RULES + pixels.RULES + strides.RULES,
    "factories": factories.RULES,
    "positions": positions.RULES + fillings.RULES + mirrors.RULES,
    "reductions and softmax": reductions.RULES,
    "cumulative ops and sorting": ordering.RULES + medians.RULES,
    "gather": indexing.RULES,
    "scatter": writes.RULES + windows.RULES,
    "matrix products and attention": contractions.RULES,
    "experts": experts.RULES,
    "convolutions and pooling": convolutions.RULES,
    "norms": norms.RULES,
    "losses": losses.RULES,
    "Fourier transforms": transforms.RULES,
}

RULES: dict[Any, Rule] = {op: rule for rules in FAMILIES.values() for rule in rules for op in rule.ops}
POINTWISE = pointwise.RULES[0]


def rule_of(op: Any) -> Rule | None:
    """The rule of an op, or None: such an op is refused where it meets a pad."""
    found = RULES.get(op)
    if found is None and pointwise.pointwise(op):
        return POINTWISE
    return found


def table_lines() -> Iterator[str]:
    """The table as Markdown."""
    yield "<!-- python -m gaudicc.padding > docs/tables/padding_rules.md -->"
    for family, rules in FAMILIES.items():
        yield f"\n## {family}\n"
        yield "| ops | demand on pads of operands | what pads of the result hold |\n|---|---|---|"
        for rule in rules:
            ops = (
                ", ".join(f"`{str(op).removesuffix('.default')}`" for op in rule.ops)
                or "every op that torch tags pointwise"
            )
            yield f"| {ops} | {rule.demand} | {rule.result} |"
