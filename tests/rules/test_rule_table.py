"""The table of rules as a whole: which rule takes which call, and that each rule and each condition is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from gaudicc.passes.legalize_ops import ALL_RULES
from gaudicc.pipeline import Numerics
from gaudicc.rules import index_generation, slicing
from gaudicc.rules.rule import Rule, always
from gaudicc.targets import Support, load_target
from gaudicc.targets.calls import OpCall, judge_call
from gaudicc.verify import differs

aten = torch.ops.aten
RULES = (*index_generation.RULES, *slicing.RULES)
FLOATS = torch.tensor([[0.5, float("nan")], [float("inf"), -0.0]])

# (op, arguments, the rule that takes the call; None where none may)
CALLS: list[tuple[Any, tuple[Any, ...], str | None]] = [
    (aten.tril_indices.default, (3, 4, 1), "tril-indices"),
    (aten.triu_indices.default, (3, 4, -1), "triu-indices"),
    (aten.slice.Tensor, (FLOATS, 1, 0, 2, 2), "strided-slice"),
    (aten.slice.Tensor, (FLOATS, 0, None, None, 1), None),
]


def law(rules: Sequence[Rule]) -> None:
    """Every call goes to the rule it is meant for, which computes the same; to none where none is meant."""
    for op, args, name in CALLS:
        rule = next((rule for rule in rules if op in rule.ops and rule.check(*args) is None), None)
        assert (rule.name if rule else None) == name, f"{op}{args}"
        if rule is not None:
            difference = differs(op(*args), rule.rewrite(*args), bitwise=rule.numerics is Numerics.BITWISE)
            assert difference is None, f"{rule.name}: {difference}"


def negated(rule: Rule) -> Rule:
    return replace(rule, check=lambda *args, **kwargs: None if rule.check(*args, **kwargs) else "negated")


def test_the_law_holds() -> None:
    law(RULES)


@pytest.mark.parametrize("index", range(len(RULES)), ids=[rule.name for rule in RULES])
def test_no_rule_can_be_left_out(index: int) -> None:
    with pytest.raises(AssertionError):
        law([rule for i, rule in enumerate(RULES) if i != index])


@pytest.mark.parametrize("index", range(len(RULES)), ids=[rule.name for rule in RULES])
def test_no_condition_can_be_turned_around(index: int) -> None:
    with pytest.raises(AssertionError):
        law([negated(rule) if i == index else rule for i, rule in enumerate(RULES)])


@pytest.mark.parametrize("index", range(len(RULES)), ids=[rule.name for rule in RULES])
def test_no_condition_can_be_dropped(index: int) -> None:
    rule = RULES[index]
    if rule.check is always:
        assert not [call for call in CALLS if call[0] in rule.ops and call[2] is None]
        return
    with pytest.raises((AssertionError, RuntimeError)):
        law([replace(rule, check=always) if i == index else rule for i, rule in enumerate(RULES)])


@pytest.mark.parametrize("index", range(len(RULES)), ids=[rule.name for rule in RULES])
def test_a_rewrite_that_computes_another_value_is_seen(index: int) -> None:
    rule = RULES[index]
    off_by_one = replace(rule, rewrite=lambda *args, **kwargs: rule.rewrite(*args, **kwargs) + 1)
    with pytest.raises(AssertionError):
        law([off_by_one if i == index else rule for i, rule in enumerate(RULES)])


@pytest.mark.parametrize("chip", ["gaudi2", "gaudi3"])
@pytest.mark.parametrize(("op", "args", "name"), [call for call in CALLS if call[2]])
def test_each_call_that_a_rule_takes_stands_on_no_evidence_at_some_size(
    op: Any, args: tuple[Any, ...], name: str, chip: str
) -> None:
    grown = tuple(arg.repeat(2048, 2048) if isinstance(arg, torch.Tensor) else arg for arg in args)
    verdict = judge_call(load_target(chip), OpCall(op, grown))
    assert verdict.support is not Support.EVIDENCED, verdict


def test_names_are_unique_and_costs_are_said() -> None:
    names = [rule.name for rule in ALL_RULES]
    assert len(set(names)) == len(names)
    assert all(rule.cost and not rule.cost.endswith(".") for rule in ALL_RULES)
    assert all(rule.name == rule.name.lower().replace("_", "-") for rule in ALL_RULES)
    assert {rule.name for rule in RULES} == {name for _, _, name in CALLS if name}, "each rule has a call here"
