"""Calibration sees calibration rows only, and the committed figures are what the code gives."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gaudicc.machine import load_chip
from gaudicc.machine.fit import STAGES, errors, fit, fit_all, mean_error, write
from gaudicc.machine.runs import predicted_seconds, published_runs, workloads
from gaudicc.machine.validate import GROUPS, mean_errors, report, validation

ROOT = Path(__file__).parents[2]


def test_rows_have_sources_and_one_use() -> None:
    runs = published_runs()
    assert len({run.id for run in runs}) == len(runs)
    assert all(run.source for run in runs)
    assert sum(run.calibrates for run in runs) < sum(not run.calibrates for run in runs)


def test_the_fit_never_looks_at_validation_rows() -> None:
    """With every validation row's figure spoiled the constants come out the same."""
    spoiled = [run if run.calibrates else replace(run, value=run.value * 10) for run in published_runs()]
    chip = load_chip("gaudi3")
    names = [name for stage in STAGES for name in stage.names]
    honest, blind = fit(chip, published_runs()), fit(chip, spoiled)
    assert [honest.value(name) for name in names] == [blind.value(name) for name in names]


def test_the_committed_constants_are_those_of_the_fit() -> None:
    for name, chip in fit_all().items():
        for stage in STAGES:
            for constant in stage.names:
                assert load_chip(name).value(constant) == pytest.approx(chip.value(constant), rel=1e-3), constant


def test_fitting_improves_on_a_bad_start() -> None:
    rows = [run for run in published_runs() if run.calibrates and run.chip == "gaudi3" and run.kind == "decode"]
    bad = load_chip("gaudi3").with_value("host.handoff_seconds", 2e-5)
    assert mean_error(rows, fit(bad, rows)) < 0.5 * mean_error(rows, bad)
    assert len(errors(rows, bad)) == len(rows)


def test_constants_are_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gaudicc.machine.fit as module

    chip = load_chip("gaudi2")
    source = Path(module.__file__).with_name("gaudi2.json")
    (tmp_path / "gaudi2.json").write_text(source.read_text())
    monkeypatch.setattr(module, "__file__", str(tmp_path / "fit.py"))
    write(chip.with_value("network.latency", 7e-6))
    changed = (tmp_path / "gaudi2.json").read_text().splitlines()
    different = [new for old, new in zip(source.read_text().splitlines(), changed, strict=True) if old != new]
    assert len(different) == 1
    assert '"latency": {"value": 7e-06' in different[0]


def test_a_run_spends_its_time_in_prefill_and_every_decode_step() -> None:
    run = next(run for run in published_runs() if run.id == "m001")
    (_, prefills), *steps = workloads(run)
    assert prefills == 1
    assert sum(times for _, times in steps) == run.new_tokens - 1
    chip = load_chip("gaudi2")
    assert predicted_seconds(run, chip) > predicted_seconds(replace(run, new_tokens=64), chip)


# The mean error each group must not exceed. Where the target of the table is missed, the bar here is what is reached,
# so that it cannot get worse unseen; the table says by how much it is missed.
BARS = {
    "GEMM": 0.05,
    "Batch-1 decode, Gaudi 2": 0.065,
    "Batch-1 decode, Gaudi 3": 0.105,
    "Static batch, one card": 0.08,
    "Static batch, a model no fit has seen, Gaudi 3": 0.12,
    "Tensor parallel": 0.15,
    "Gaudi 2 to Gaudi 3, data sheet only": 0.15,
}


@pytest.mark.parametrize(("title", "bar"), BARS.items())
def test_validation_error(title: str, bar: float) -> None:
    found = validation(next(group for group in GROUPS if group.title == title))
    ours, roofline = mean_errors(found)
    assert ours <= bar
    assert ours < roofline


def test_the_committed_table_is_fresh() -> None:
    assert (ROOT / "docs" / "tables" / "machine_validation.md").read_text() == report()


def test_the_room_imports_without_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import gaudicc.machine, gaudicc.machine.validate, gaudicc.machine.yardstick\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
