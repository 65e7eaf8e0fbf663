"""The porting story: how stages are priced, and (in the sweep) that the stages come out as the page says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gaudicc.bench import story_shape
from gaudicc.bench.story import TITLES, measured_table, sizes, stream, table, tell
from gaudicc.bench.story_stages import STAGES
from gaudicc.cli import main
from gaudicc.machine import CHIPS, load_chip

NOTHING = {
    name: 0
    for name in ("fallback", "to_host", "to_device", "host_read", "compile", "hit", "replay", "bytes", "compiled_ops")
}
LENGTHS, BUCKETS = [3, 8, 3], [8]
EXACT = {name: {"3": [1e-5, 10], "8": [2e-5, 10]} for name in CHIPS}
PADDED = {name: {"8": [2e-5, 10]} for name in CHIPS}


def outcomes(**changes: Any) -> dict[str, Any]:
    plain = NOTHING | {"cpu": 0.003, "warm": 0, "error": 0.0, "device": {}}
    made = {stage: dict(plain) for stage in STAGES}
    made["as is"] = {"raised": "no complex tensor"}
    made["eager"] |= {"compile": 20, "hit": 40, "compiled_ops": 20}
    made["lazy"] |= {"compile": 2, "hit": 1, "compiled_ops": 40}
    made["legalised"] |= {"compile": 2, "hit": 1, "compiled_ops": 20, "device": EXACT}
    made["recorded"] |= {"replay": 3, "device": PADDED}
    made["split"] |= {"replay": 3, "device": PADDED}
    for stage, change in changes.items():
        made[stage] |= change
    return made


def micros(rows: Any, chip: str = "gaudi2") -> dict[str, float]:
    return {row.stage: row.micros[chip] for row in rows if not row.raised}


def test_the_host_or_the_device_whichever_is_longer() -> None:
    host, tokens = load_chip("gaudi2").host, sum(LENGTHS)
    found = micros(tell(outcomes(), LENGTHS, BUCKETS))
    assert found[TITLES["eager"]] == pytest.approx(60 * host.eager_op_seconds / tokens * 1e6)
    assert found[TITLES["lazy"]] == pytest.approx(60 * host.lazy_op_seconds / tokens * 1e6)
    assert found[TITLES["legalised"]] == pytest.approx(30 * host.lazy_op_seconds / tokens * 1e6)
    assert found[TITLES["recorded"]] == pytest.approx(max(6e-5, 3 * host.replay_seconds) / tokens * 1e6)


def test_crossings_and_fallbacks_cost_their_latency_and_bytes() -> None:
    host, tokens = load_chip("gaudi2").host, sum(LENGTHS)
    before = micros(tell(outcomes(), LENGTHS, BUCKETS))[TITLES["lazy"]]
    change = {"fallback": 3, "to_host": 4, "host_read": 1, "bytes": 10**6}
    rows = tell(outcomes(lazy=change), LENGTHS, BUCKETS)
    more = (6 + 5) * host.transfer_latency + 10**6 / host.pcie_bandwidth
    assert micros(rows)[TITLES["lazy"]] - before == pytest.approx(more / tokens * 1e6)
    row = next(row for row in rows if row.stage == TITLES["lazy"])
    assert (row.fallbacks, row.crossings) == (1, 5 / 3)


def test_compiling_is_counted_apart() -> None:
    host, tokens = load_chip("gaudi3").host, sum(LENGTHS)
    for row in tell(outcomes(), LENGTHS, BUCKETS)[1:]:
        extra = row.with_compiling["gaudi3"] - row.micros["gaudi3"]  # type: ignore[index]
        ops = {TITLES["eager"]: 20, TITLES["lazy"]: 40, TITLES["legalised"]: 20}.get(row.stage, 0)
        assert extra == pytest.approx(ops * host.compile_seconds_per_node / tokens * 1e6)


def test_a_stage_that_does_not_run_says_why() -> None:
    text = table(tell(outcomes(), LENGTHS, BUCKETS), 3).splitlines()
    assert "does not run: no complex tensor" in text[2]
    assert len({line.count("|") for line in text}) == 1


REAL = """
import sys
from gaudicc.bench import story_stages
story_stages.emulated = lambda: False
story_stages.main(sys.argv[1])
"""


@pytest.mark.parametrize("stage", ["lazy", "recorded"])
def test_on_a_real_device_its_metrics_count_and_time_is_measured(stage: str, tmp_path: Path) -> None:
    (tmp_path / "real.py").write_text(REAL)
    work = json.dumps({"stage": stage, "layers": 1, "lengths": [3, 5, 3], "buckets": [8]})
    command = [sys.executable, "-m", "gaudicc.emulator", "--mode", "lazy", str(tmp_path / "real.py"), work]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["measured"] > 0
    assert found["error"] < 1e-4
    assert (found["fallback"] > 0, found["compile"] > 0) == ((True, True) if stage == "lazy" else (False, False))
    assert (found["warm"] > 0) == (stage == "recorded")
    (row,) = tell({stage: found}, [3, 5, 3], [8])
    assert row.measured == pytest.approx(found["measured"] / 11 * 1e6)
    gone = tell({"as is": {"raised": "no complex tensor"}}, [3, 5, 3], [8])
    text = measured_table([*gone, row], 3).splitlines()
    assert f"| {row.measured:.0f} |" in text[3]
    assert "does not run: no complex tensor" in text[2]
    assert len({line.count("|") for line in text}) == 1


def test_a_large_shape_is_bound_by_the_host_until_it_is_recorded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story_shape, "CHIPS", ("gaudi2",))
    monkeypatch.setattr(
        story_shape, "STEPS", [step for step in story_shape.STEPS if step[0] in (story_shape.READS, story_shape.SAYS)]
    )
    assert main(["bench", "story", "--shape", "Llama-3.1-8B"]) == 0
    printed = capsys.readouterr()
    assert "Llama-3.1-8B on gaudi2: a token after 512" in printed.err
    assert len(printed.out.splitlines()) == (2 + 2) + 1 + (2 + 1) + 1 + (2 + 4)
    found = list(story_shape.rows("Llama-3.1-8B"))
    host = load_chip("gaudi2").host
    for row in found:
        asis_eager, asis_lazy, legal, recorded, split = row.seconds.values()
        assert split <= recorded < legal < asis_lazy < asis_eager
        assert asis_eager >= row.as_is.ops * host.eager_op_seconds
        device = row.legal.seconds + row.legal.nodes * host.handoff_seconds
        assert legal == pytest.approx(max(device, row.legal.nodes * host.lazy_op_seconds))
        assert recorded == pytest.approx(device + host.replay_seconds + 3 * host.transfer_latency)
        assert row.compiling == row.legal.nodes * host.compile_seconds_per_node
        assert row.legal.compile_seconds < row.compiling / 4, "layers share a recipe"
        assert row.legal.launches == 32 + 2
        assert row.legal.nodes > 32 * 20
    weights = 8.03e9 * 2
    token = next(row for row in found if row.step == story_shape.SAYS)
    assert token.legal.seconds > weights / load_chip("gaudi2").memory.hbm_bandwidth, "a token reads every weight"
    answer = story_shape.answer_seconds(found, "gaudi2")["recorded"]
    assert 127 * token.seconds["recorded"] < answer < 131 * token.seconds["recorded"]
    lengths = [5, 9, 5]
    counted = story_shape.compiles(found, lengths, load_chip("gaudi2"))
    assert counted["as is, lazy"][0] == 2 + 127 + 4
    assert counted["recorded, while serving"] == (0, 0.0)


def test_a_shape_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "story", "--shape", "llama"]) == 1
    assert "Llama-3.1-70B" in capsys.readouterr().err


def test_the_stream_is_seeded_and_fits_the_buckets() -> None:
    lengths = stream(200, 64)
    assert lengths == stream(200, 64)
    assert (min(lengths), max(lengths)) == (1, 64)
    assert 12 < sum(lengths) / 200 < 20
    assert sizes(64) == [8, 16, 32, 64]
    assert sizes(3) == [8]


@pytest.mark.sweep
def test_the_story_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "story", "--requests", "12", "--longest", "16", "--layers", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    asis, eager, lazy, legal, recorded, split = rows
    assert "complex" in asis["raised"]
    assert eager["fallbacks"] == lazy["fallbacks"] > 0
    assert eager["launches"] > lazy["launches"] > legal["launches"] == recorded["launches"] == 1
    assert legal["fallbacks"] == recorded["fallbacks"] == split["fallbacks"] == 0
    assert legal["compiles"] > recorded["compiles"] == split["compiles"] == 0
    assert max(row["error"] for row in rows) < 1e-4
    for chip in CHIPS:
        assert recorded["micros"][chip] < legal["micros"][chip] < lazy["micros"][chip]
