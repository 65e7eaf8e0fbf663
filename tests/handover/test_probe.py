"""Samples and what becomes of them: on the emulated device, and where a sample takes its process with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gaudicc.errors import DeviceError
from gaudicc.handover.probe import probe
from gaudicc.handover.samples import samples
from gaudicc.runtime.hpu_probe import _difference
from gaudicc.targets import load_target

TRYING = """
import sys, torch
from gaudicc.runtime.hpu_probe import try_call
from gaudicc.runtime.hpu_software import start
from gaudicc.targets.calls import OpCall
mode = start().mode
aten, x = torch.ops.aten, torch.full((4, 4), 0.5)
def outcome(op, *args, expected=None, compare=True):
    call = OpCall(op, args)
    given = (call.run(),) if expected is None else (expected,)
    print(try_call(call, given, compare=compare, mode=mode).what)
outcome(aten.mm.default, x, x)
outcome(aten.mm.default, x, x, expected=torch.zeros(4, 4))
outcome(aten.mm.default, x, x, expected=torch.zeros(4, 4), compare=False)
outcome(aten.mm.default, x, x, expected=torch.zeros(2, 2))
outcome(aten.histc.default, x)
outcome(aten.complex.default, x, x, expected=x)
"""


@pytest.mark.parametrize(("mode", "fallback"), [("lazy", "fell back"), ("eager", "raised")])
def test_what_becomes_of_a_call(mode: str, fallback: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(TRYING)
    command = [sys.executable, "-m", "gaudicc.emulator", "--mode", mode, str(tmp_path / "script.py")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:5] == ["ran", "wrong", "ran", "wrong", fallback]
    assert done.stdout.splitlines()[5] in ("raised", "fell back", "wrong"), "the device holds no complex tensor"


def test_values_are_compared_by_size_and_places() -> None:
    nan, inf = float("nan"), float("inf")
    one = torch.tensor([1.0, nan, inf])
    assert _difference(one, one.clone()) == 0
    assert _difference(torch.tensor([1.0, inf, nan]), one) == inf
    assert _difference(torch.tensor([0.5, nan, inf]), one) == 0.5
    assert _difference(torch.tensor([1]), torch.tensor([1.0])) == inf
    assert _difference(torch.tensor([3]), torch.tensor([3], dtype=torch.int32)) == 0


def test_samples_are_the_same_everywhere_and_cover_what_programs_consist_of() -> None:
    target = load_target("gaudi3")
    found = [(sample.op, sample.dtypes) for sample in samples(target)]
    assert found == [(sample.op, sample.dtypes) for sample in samples(target)]
    assert len(found) == len(set(found))
    ops = {op for op, _ in found}
    assert len(ops) > 150
    assert {"aten::mm", "aten::add.Tensor", "aten::_softmax", "aten::exp", "aten::cat", "aten::amax"} <= ops
    assert not any(op.endswith("_") or ".out" in op for op in ops)
    (mm, *_) = samples(target, ["aten::mm"])
    assert (mm.op, mm.dtypes, mm.expected[0].shape) == ("aten::mm", "f32", (4, 4))


def children(*ends: tuple[int, int | None]) -> Any:
    """Processes that each begin samples until the one of this number, and then end with a status; None tries nothing."""
    told = iter(ends)

    def run(command: list[str], **_: Any) -> Any:
        status, last = next(told)
        file, skip = Path(command[3]), int(command[4])
        lines = []
        for number in range(skip, -1 if last is None else last + 1):
            name = {"op": f"aten::op{number}", "dtypes": "f32"}
            lines.append(json.dumps(name))
            if number != last or status == 0:
                lines.append(json.dumps({**name, "outcome": "ran", "error": 0.0, "detail": ""}))
        file.write_text("\n".join(lines))
        return subprocess.CompletedProcess(command, status, "", "oh\nno card")

    return run


def test_a_sample_that_ends_its_process_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", children((-11, 2), (-6, 3), (0, 5)))
    found = [(each.op, each.outcome) for each in probe(tmp_path)]
    crashed = [name for name, outcome in found if outcome == "crashed"]
    assert [name for name, _ in found] == [f"aten::op{number}" for number in range(6)]
    assert crashed == ["aten::op2", "aten::op3"]


def test_a_probe_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", children((1, None)))
    with pytest.raises(DeviceError, match="cannot start: no card"):
        list(probe(tmp_path))
