"""PyTorch's own operator samples through the judge: what runs is right, what is not evidenced is named.

The sweep runs all float32 samples and compares with docs/tables/op_db_judge.csv; to write that table,
GAUDICC_UPDATE_TABLES=1 pytest -m sweep tests/interpreter
"""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._python_dispatch import TorchDispatchMode

from gaudicc.errors import UnsupportedOpError
from gaudicc.interpreter import Judge
from gaudicc.targets import Mode, load_target
from gaudicc.targets.calls import tensors_in

TARGET = load_target("gaudi3")
TABLE = Path(__file__).parents[2] / "docs" / "tables" / "op_db_judge.csv"
UNINITIALISED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
CUDA_ONLY = {name.name for name in op_db if name.name.startswith("jiterator")}
ENTRIES = [entry for entry in op_db if torch.float32 in entry.dtypes and entry.name not in CUDA_ONLY]
QUICK = ENTRIES[::40]


class Judged(TorchDispatchMode):
    """Sends every call to a judge."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.judge.call(func, args, kwargs)


def run(entry: Any, sample: Any, judge: Judge) -> Any:
    torch.manual_seed(0)
    with torch.no_grad(), Judged(judge):
        return entry(sample.input, *sample.args, **sample.kwargs)


def eager(entry: Any, sample: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        return entry(sample.input, *sample.args, **sample.kwargs)


def assert_equal(entry: Any, ours: Any, theirs: Any) -> None:
    if entry.name in UNINITIALISED:
        return
    for left, right in zip(tensors_in(ours), tensors_in(theirs), strict=True):
        wanted = right.float() if right.dtype is torch.float64 else right
        torch.testing.assert_close(left, wanted, rtol=1e-4, atol=1e-4, equal_nan=True)


def statuses(entries: Iterable[Any], mode: Mode) -> Iterator[tuple[str, str, int, str]]:
    """Entry, worst status over its samples, their number, and the first reason; asserts results on the way."""
    for entry in entries:
        refused, presumed, count = "", "", 0
        for sample in entry.sample_inputs("cpu", torch.float32):
            count += 1
            judge = Judge(TARGET, mode)
            try:
                result = run(entry, sample, judge)
            except UnsupportedOpError as refusal:
                refused = refused or refusal.what
                continue
            assert not judge.fallbacks
            assert_equal(entry, result, eager(entry, sample))
            presumed = presumed or ", ".join(sorted(judge.presumed))
        status = "refused" if refused else "presumed" if presumed else "legal"
        yield f"{entry.name}.{entry.variant_test_name}".rstrip("."), status, count, refused or presumed


@pytest.mark.parametrize("entry", QUICK, ids=lambda entry: f"{entry.name}.{entry.variant_test_name}".rstrip("."))
def test_quick_samples_are_right_or_refused(entry: Any) -> None:
    ((_, status, count, reason),) = statuses([entry], Mode.LAZY)
    assert count
    assert (status == "legal") is (not reason)


@pytest.mark.sweep
def test_all_samples_are_right_and_the_table_is_fresh() -> None:
    rows = {mode: list(statuses(ENTRIES, mode)) for mode in Mode}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["entry", "samples", "lazy", "compile", "lazy_reason", "compile_reason"])
    for (name, lazy, count, why), (_, compiled, _, why_compiled) in zip(*rows.values(), strict=True):
        writer.writerow([name, count, lazy, compiled, why, why_compiled])
    if os.environ.get("GAUDICC_UPDATE_TABLES"):
        TABLE.write_text(text.getvalue())
    assert TABLE.read_text() == text.getvalue()
