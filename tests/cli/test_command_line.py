"""The command line: what it prints, its exit codes, and that bad input gives three lines and no traceback."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gaudicc
from gaudicc.checker import check
from gaudicc.cli import app, main
from gaudicc.cli.links import broken_links, require_links
from gaudicc.errors import InputError, ModelFileError
from gaudicc.passes import DEFAULT_PIPELINE


class Doubler(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "doubler.zip"
    gaudicc.compile(Doubler().eval(), (torch.ones(2, 3),)).save(path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "doubler.pt2"
    torch.export.save(torch.export.export(Doubler().eval(), (torch.ones(2, 3),)), path)
    return path


def test_passes_prints_the_pipeline_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == [step.name for step in DEFAULT_PIPELINE]
    assert "legal-ops" in next(entry for entry in entries if entry["name"] == "legalize-ops")["ensures"]


def test_doctor_tells_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert torch.__version__.startswith(facts["torch"].split("+")[0])
    assert facts["devices"]["cpu"].startswith("yes")
    assert set(facts["links"].values()) == {"ok"}


def test_compile_prints_passes_and_writes_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = [
        "--dump",
        str(tmp_path / "dump"),
        "--report",
        str(tmp_path / "report"),
        "--save",
        str(tmp_path / "b.zip"),
    ]
    assert main(["compile", "llama", "--json", *written]) == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert [entry["name"] for entry in data["passes"]] == [step.name for step in DEFAULT_PIPELINE]
    assert "compiling llama" in captured.err
    assert (tmp_path / "dump" / "00_capture.txt").is_file()
    assert (tmp_path / "report" / "index.html").is_file()
    assert (tmp_path / "b.zip").is_file()


def test_compile_takes_dynamic_sizes_and_buckets(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["compile", "llama", "--dynamic", "sequence=64", "--buckets", "sequence=16", "sequence=32", "--json"]) == 0
    )
    data = json.loads(capsys.readouterr().out)
    assert data["buckets"] == [{"sequence": 16}, {"sequence": 32}]


def test_check_lists_ops_with_their_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "cuda-style-llm", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    [triu] = [entry for entry in data["ops"] if entry["op"] == "aten::triu_indices"]
    assert triu["support"] == "reported_bad"
    assert "cuda_style_llm.py:" in triu["sources"][0]
    assert "rule triu-indices" in triu["remedies"][0]
    assert data["hazards"]["c64"] > 0


def test_run_ranks_a_file_and_compares_with_eager(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    lines = ["The stew needs salt.", "My flight leaves at noon.", "", *(f"Line {i} of a long list." for i in range(40))]
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(lines))
    assert main(["run", "sentence-encoder", "--query", "airplane", "--file", str(file), "--compare", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["ranking"][0]["line"] == "My flight leaves at noon."
    assert len(data["ranking"]) == 42  # more than one recorded call, the last one filled up; blank lines left out
    assert data["max_abs_difference"] < 1e-5


def test_run_takes_a_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", str(bundle)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "float32[2, 3]" in captured.out


def test_run_takes_a_trusted_pt2(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(exported), "--trust"]) == 0
    assert "float32[2, 3]" in capsys.readouterr().out


def _bad(tmp_path: Path, bundle: Path, exported: Path) -> dict[str, list[str]]:
    corrupt = tmp_path / "corrupt.zip"
    corrupt.write_bytes(bundle.read_bytes()[:-200])
    empty = tmp_path / "empty"
    empty.mkdir(exist_ok=True)
    blank = tmp_path / "blank.txt"
    blank.write_text("\n\n")
    return {
        "unknown model": ["compile", "no-such-model"],
        "unknown target": ["compile", "llama", "--target", "gaudi9"],
        "missing folder": ["check", str(tmp_path / "nowhere" / "model")],
        "folder without a model": ["check", str(empty)],
        "missing pt2": ["compile", str(tmp_path / "no.pt2"), "--trust"],
        "pt2 without trust": ["compile", str(exported)],
        "corrupt bundle": ["run", str(corrupt)],
        "missing bundle": ["run", str(tmp_path / "no.zip")],
        "compile of a bundle": ["compile", str(bundle)],
        "missing lines": ["run", "sentence-encoder", "--query", "x", "--file", str(tmp_path / "no.txt")],
        "blank lines": ["run", "sentence-encoder", "--query", "x", "--file", str(blank)],
        "no query": ["run", "sentence-encoder"],
        "query for another model": ["run", "bert", "--query", "x"],
        "malformed dynamic": ["compile", "llama", "--dynamic", "sequence"],
        "malformed buckets": ["compile", "llama", "--dynamic", "sequence=64", "--buckets", "sequence=x"],
        "batch 0": ["check", "bert", "--batch", "0"],
        "save over a file": ["compile", "llama", "--report", str(blank)],
    }


@pytest.mark.parametrize(
    "case",
    [
        "unknown model",
        "unknown target",
        "missing folder",
        "folder without a model",
        "missing pt2",
        "pt2 without trust",
        "corrupt bundle",
        "missing bundle",
        "compile of a bundle",
        "missing lines",
        "blank lines",
        "no query",
        "query for another model",
        "malformed dynamic",
        "malformed buckets",
        "batch 0",
        "save over a file",
    ],
)
def test_bad_input(case: str, tmp_path: Path, bundle: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_bad(tmp_path, bundle, exported)[case]) == 1
    captured = capsys.readouterr()
    error = captured.err[captured.err.index("error: ") :].splitlines()
    assert 2 <= len(error) <= 3, captured.err
    assert error[-1].startswith("  to do: ")
    assert "Traceback" not in captured.err
    assert not captured.out


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["compile"], ["check", "bert", "--nonsense"], ["buckets"]])
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    assert main(arguments) == 2


def test_a_fault_of_ours_exits_3_and_shows_a_traceback_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(app, "require_links", explode)
    assert main(["passes"]) == 3
    assert capsys.readouterr().err.splitlines()[0] == "error: ZeroDivisionError: boom"
    assert main(["passes", "--traceback"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_link_that_became_a_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "passes").write_text("../passes")
    assert broken_links(tmp_path) == ("passes", "models")
    with pytest.raises(ModelFileError, match="text file"):
        require_links(tmp_path)


def test_bucket_plan_reports_a_missing_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["buckets", "plan", "--trace", str(tmp_path / "no.csv")]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", *app.COMMANDS])
def test_help_is_quick_and_loads_no_torch(command: str) -> None:
    code = "import sys; from gaudicc.cli import main; assert main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *command.split(), "--help"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "usage: gaudicc" in done.stdout
    # CPU seconds, for other tests run beside; twice the bound of 0.3 s, for a shared core is slower
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6


def test_check_reports_a_branch_on_data_as_a_finding() -> None:
    def branch(x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x

    findings = check(branch, (torch.ones(3),))
    if findings.obstacle is None:  # capture mends such functions by now
        assert findings.dynamic
    else:
        assert findings.obstacle.kind == "DynamicControlFlowError"
        assert "test_command_line.py:" in findings.obstacle.where
        assert "capture stops" in str(findings)


def test_check_raises_what_the_caller_did_wrong() -> None:
    with pytest.raises(InputError):
        check(3)
