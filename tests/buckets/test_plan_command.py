"""`gaudicc buckets plan` on the shipped sample: tables, JSON, picture, vLLM's file, re-planning, errors."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import gaudicc.buckets
from gaudicc.cli.app import main

TRACE = Path(gaudicc.buckets.__file__).parent / "data" / "azure2023_conv_2000.csv"


@pytest.fixture(autouse=True)
def folder_with_short_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short.csv").write_text("".join(TRACE.read_text().splitlines(keepends=True)[:300]))
    monkeypatch.chdir(tmp_path)


def plan(*arguments: str) -> int:
    return main(["buckets", "plan", "--trace", "short.csv", "--replays", "0", *arguments])


def test_the_shipped_trace_makes_a_heat_table_of_each_phase(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["buckets", "plan", "--trace", str(TRACE), "--max-graphs", "12"]) == 0
    out = capsys.readouterr().out
    assert "query" in out
    assert "blocks" in out
    assert "12 graphs, about" in out


def test_json_export_and_recorded_buckets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vllm, saved = tmp_path / "buckets.txt", tmp_path / "plan.json"
    assert plan("--max-graphs", "10", "--json", "--export", f"vllm={vllm}", f"json={saved}") == 0
    document = json.loads(capsys.readouterr().out)
    counts = {name: len(phase["buckets"]) for name, phase in document["phases"].items()}
    assert sum(counts.values()) <= 10
    assert all(document["figures"][name]["graphs"] == count for name, count in counts.items())
    assert json.loads(saved.read_text()) == document
    rows = [ast.literal_eval(line) for line in vllm.read_text().splitlines() if line.startswith("(")]
    assert {(1, 2048, 63), (128, 1, 4107)} <= set(rows)

    assert plan("--max-graphs", "14", "--json", "--recorded", str(saved)) == 0
    again = json.loads(capsys.readouterr().out)
    for name, phase in document["phases"].items():
        assert {tuple(box) for box in phase["buckets"]} <= {tuple(box) for box in again["phases"][name]["buckets"]}


def test_picture_shows_every_bucket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.svg"
    assert plan("--max-graphs", "8", "--json", "--plot", str(path)) == 0
    document = json.loads(capsys.readouterr().out)
    root = ET.fromstring(path.read_text())
    squares = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert len(squares) == sum(len(phase["buckets"]) for phase in document["phases"].values())
    for square in squares:
        assert 0 <= float(square.attrib["y"]) <= float(root.attrib["height"])
        assert 0 <= float(square.attrib["x"]) <= float(root.attrib["width"])


def test_memory_budget_of_one_phase(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--phase", "prefill", "--max-gib", "4", "--json") == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["prefill"]["graphs"] == 4
    assert figures["device_gib"] <= 4


def test_batched_prefill_has_three_dims(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--phase", "prefill", "--max-prefill-seqs", "4", "--max-graphs", "5", "--json"]
    assert plan(*options, "--cached-share", "0.5") == 0
    phase = json.loads(capsys.readouterr().out)["phases"]["prefill"]
    assert phase["dims"] == ["batch", "query", "context"]
    assert len(phase["buckets"]) <= 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trace", "none.csv"], "cannot read the trace"),
        (["--max-gib", "0.1"], "does not allow even"),
        (["--max-graphs", "0"], "allows none"),
        (["--export", "csv=x"], "is not understood"),
        (["--export", "json=none/none/x"], "cannot write"),
        (["--plot", "x.png", "--max-graphs", "2"], "not an .svg"),
        (["--plot", "none/none/x.svg", "--max-graphs", "2"], "cannot write the picture"),
        (["--replays", "-1"], "negative"),
        (["--load", "-1"], "over 0"),
        (["--worst-padding", "1.0001", "--max-graphs", "4"], "no division of this budget"),
        (["--worst-padding", "1.0001", "--max-graphs", "4", "--phase", "decode"], "4 buckets cannot keep"),
    ],
)
def test_user_errors_exit_1_with_a_reason(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--max-graphs", "2", *arguments) == 1
    assert words in capsys.readouterr().err


def test_recorded_buckets_of_another_server_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "plan.json"
    assert plan("--phase", "prefill", "--max-graphs", "2", "--export", f"json={saved}") == 0
    assert plan("--phase", "prefill", "--max-prefill-seqs", "2", "--recorded", str(saved)) == 1
    assert "this server's are over ('batch', 'query', 'context')" in capsys.readouterr().err


def test_trace_without_decode_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_len,output_len\n0,100,1\n1,200,1\n")
    assert main(["buckets", "plan", "--trace", str(trace)]) == 1
    assert "makes no decode calls" in capsys.readouterr().err


def test_help_loads_neither_numpy_nor_torch() -> None:
    code = (
        "import sys, gaudicc.cli; status = gaudicc.cli.main(['buckets', 'plan', '--help']);"
        "print(status, [m for m in ('numpy', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"
