"""The bench of operator samples: what it calls legal, raised or wrong, that it may be resumed, and how its table is sorted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gaudicc.bench import legal_samples
from gaudicc.bench.legal import Row, table
from gaudicc.bench.legal_samples import Compiled, Outcome, Status, judge


class _Entry:
    name = "made"

    def __init__(self, op: Any) -> None:
        self.op = op

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.op(*args, **kwargs)


def sample(*tensors: Any, **kwargs: Any) -> Any:
    return SimpleNamespace(input=tensors[0], args=tensors[1:], kwargs=kwargs)


@pytest.mark.parametrize(
    ("op", "inputs", "status"),
    [
        (torch.mul, (torch.tensor([3, 4]), torch.tensor([5, 6])), Status.NATIVE),
        (torch.gcd, (torch.tensor([4, 6]), torch.tensor([6, 9])), Status.RULE),
        (torch.mul, (torch.tensor([2**20, 4]), torch.tensor([2**20, 6])), Status.REFUSED),
        (torch.linalg.svdvals, (torch.eye(2),), Status.REFUSED),
    ],
    ids=["native", "rule", "overflow", "refused"],
)
def test_what_becomes_of_a_sample(op: Any, inputs: Any, status: Status) -> None:
    outcome = judge(_Entry(op), sample(*inputs))
    assert outcome.status is status
    if op is torch.mul and status is Status.REFUSED:
        assert "raises at run time" in outcome.detail


def test_integers_that_wrap_without_a_flag_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = tuple(step for step in legal_samples.PASSES if step.name != "check-integers")
    monkeypatch.setattr(legal_samples, "PASSES", passes)
    outcome = judge(_Entry(torch.mul), sample(torch.tensor([2**20]), torch.tensor([2**20])))
    assert outcome == Outcome(Status.WRONG, "int64 wraps in aten::mul.Tensor")


def test_samples_that_differ_in_values_only_share_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    compile_sample = legal_samples.compile_sample

    def counted(*args: Any) -> Any:
        made.append(args)
        return compile_sample(*args)

    monkeypatch.setattr(legal_samples, "compile_sample", counted)
    known: Compiled = {}
    for x, alpha in ((1.0, 1), (2.0, 1), (2.0, 3)):
        outcome = judge(_Entry(torch.add), sample(torch.full((2,), x), torch.ones(2), alpha=alpha), known)
        assert outcome.status is Status.NATIVE
    assert len(made) == len(known) == 2


def test_rows_are_read_back_and_what_models_use_comes_first() -> None:
    rows = [
        Row("svd", "", 2, Outcome(Status.REFUSED, "a | b"), {Status.REFUSED: 2}),
        Row("nn.functional.ctc_loss", "", 1, Outcome(Status.REFUSED, "c"), {Status.REFUSED: 1}),
        Row("add.out", "out", 3, Outcome(Status.RULE, "r"), {Status.RULE: 1, Status.NATIVE: 2}),
    ]
    assert [Row.of(row.text()) for row in rows] == rows
    assert [row.op for row in rows] == ["svd", "ctc_loss", "add"]
    lines = list(table(rows, "int64", 4, {"ctc_loss": 7}))
    assert (
        lines[0]
        == "<!-- python -m gaudicc.bench.legal --dtype int64 --samples 4 > docs/tables/op_db_legal_int64.md -->"
    )
    assert lines[-3:] == [
        "| nn.functional.ctc_loss | refused | 7 | refused 1 | c |",
        "| svd | refused | 0 | refused 2 | a / b |",
        "| add.out | rule | 0 | native 2, rule 1 | r |",
    ]
