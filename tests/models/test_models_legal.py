"""Transformers models through the whole pipeline: legal under the target's rules, equal to eager, and no slower by our passes."""

from __future__ import annotations

import pytest

from gaudicc.bench.legal_models import BOUND, Row, Size, judge, ratio, table
from gaudicc.models.transformers_models import Task


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("gpt2", "causal"),
        pytest.param("llama", "causal", marks=pytest.mark.sweep),
        pytest.param("xlnet", "causal", marks=pytest.mark.sweep),
        pytest.param("rwkv", "causal", marks=pytest.mark.sweep),  # scales its weights in its first call
        pytest.param("mbart", "seq2seq", marks=pytest.mark.sweep),
        pytest.param("albert", "encoder", marks=pytest.mark.sweep),
    ],
)
def test_a_model_is_legal_equal_to_eager_and_bounded(name: str, task: Task) -> None:
    row = judge(name, task)
    assert row.status in ("legal", "presumed"), row.detail
    assert row.wide == 0
    assert 0 < ratio(row) <= BOUND


@pytest.mark.parametrize("name", ["xmod", pytest.param("blt", marks=pytest.mark.sweep)])  # blt: patches, and hashes
def test_a_model_of_which_data_decides_the_sizes_has_no_size_before(name: str) -> None:
    """What PyTorch itself would run of it has no static size, and that is no refusal of ours."""
    row = judge(name, "causal")
    assert row.status in ("legal", "presumed"), row.detail
    assert row.before is None
    assert row.after is not None


def test_the_page_says_what_is_slower_and_how_many_are_legal() -> None:
    size, slow = Size(10, 1000, 1e-6), Size(12, 1200, 2e-6)
    rows: list[tuple[Task, Row]] = [
        ("causal", Row("one", "legal", before=size, after=size)),
        ("causal", Row("two", "presumed", "gaudicc::attention", before=size, after=slow)),
        ("encoder", Row("three", "refused", "aten::x | y")),
        ("encoder", Row("four", "not built", "no")),
    ]
    lines = list(table(rows, "command"))
    assert lines[-1] == f"2 of 3 legal or presumed; more than {BOUND} x in modelled time: two."
    assert any(
        line.startswith("| causal | two | presumed | 10 -> 12 | 1000 -> 1200 | 1.0 -> 2.0 | 2.00 |") for line in lines
    )
    assert any("aten::x / y" in line for line in lines)
