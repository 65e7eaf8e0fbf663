"""`gaudicc profile --calibrate`: a trace of a chip with other constants gives these constants back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gaudicc.cli import main
from gaudicc.errors import InputError
from gaudicc.machine import Chip, Engine, Gemm, OpClass, OpWork, load_chip, op_cost
from gaudicc.machine.fit import fit_observations
from gaudicc.profile import Activity, Profile, profile_of
from gaudicc.profile.calibrate import observations
from gaudicc.profile.chrome import write_chrome

CHIP = load_chip("gaudi2")
ELSEWHERE = {"mme.sustained": 0.6, "memory.hbm_efficiency": 0.5, "host.handoff_seconds": 5e-6}
WORKS = (
    OpWork("mm", OpClass.GEMM, "bf16", Gemm(4096, 4096, 4096), 0, 1 << 26, 1 << 25),
    OpWork("view", OpClass.VIEW),
    OpWork("exp", OpClass.TRANSCENDENTAL, "fp32", None, 1 << 24, 1 << 26, 1 << 26),
)


def elsewhere() -> Chip:
    chip = CHIP
    for name, value in ELSEWHERE.items():
        chip = chip.with_value(name, value)
    return chip


def traced(runs: int) -> list[Activity]:
    """What a trace of the works shows on that chip."""
    found, now = [], 0.0
    for _ in range(runs):
        for work in WORKS:
            cost = op_cost(work, elsewhere())
            if cost.engine is not Engine.NONE:
                found.append(
                    Activity(cost.engine.value, f"[HD0] {cost.engine.value}", work.name, now, now + cost.seconds)
                )
                now += cost.seconds + ELSEWHERE["host.handoff_seconds"]
    # The last hand-over lies in the window too.
    found.append(Activity("HOST", "Host", "end", now, now + 1e-12))
    return found


@pytest.mark.parametrize("runs", [1, 3])
def test_constants_are_found_again(runs: int) -> None:
    trace = profile_of(traced(runs), "trace", modelled=False)
    fitted = fit_observations(CHIP, observations(WORKS, trace, runs))
    for name, value in ELSEWHERE.items():
        assert fitted.value(name) == pytest.approx(value, rel=0.02), name


def test_a_trace_without_an_engine_shows_nothing_of_it() -> None:
    only = [entry for entry in traced(1) if entry.kind == "TPC"]
    names = [each.constants for each in observations(WORKS, profile_of(only, "trace", modelled=False))]
    assert names == [("memory.hbm_efficiency",)]
    with pytest.raises(InputError, match="neither MME nor TPC"):
        observations(WORKS, Profile("trace", False, 1.0, {"DMA": 1.0}, {}, 0.0, 0.0, ()))


def test_the_command_fits_writes_and_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_chrome(tmp_path / "trace.json", [("trace", traced(1))])
    model = ("llama", "--target", "gaudi2", "--sequence", "64")
    tables = ("--into", str(tmp_path / "tables"))
    assert main(["profile", *model, "--calibrate", str(tmp_path / "trace.json"), *tables]) == 0
    shown = capsys.readouterr()
    assert "mme.sustained: 0.9671 -> " in shown.err
    assert "trace.json (from a trace)" in shown.out
    monkeypatch.setenv("GAUDICC_TABLES", str(tmp_path / "tables"))
    chip = load_chip("gaudi2")
    assert chip.memory.hbm_efficiency != CHIP.memory.hbm_efficiency
    assert "--calibrate trace.json" in chip.sources["memory.hbm_efficiency"].text


def test_what_is_left_of_a_window_by_rounding_is_no_time() -> None:
    trace = profile_of(traced(1), "trace", modelled=False)
    rounded = replace(trace, idle=1e-19)
    assert [each.constants for each in observations(WORKS, rounded)] == [("memory.hbm_efficiency",), ("mme.sustained",)]


@pytest.mark.parametrize("arguments", [(), ("llama", "--runs", "0")])
def test_what_cannot_be_calibrated_is_said(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_chrome(tmp_path / "trace.json", [("trace", traced(1))])
    assert main(["profile", *arguments, "--sequence", "16", "--calibrate", str(tmp_path / "trace.json")]) == 1
    assert "--calibrate needs the model" in (said := capsys.readouterr().err) or "one run or more" in said
