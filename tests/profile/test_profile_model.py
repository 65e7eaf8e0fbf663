"""`gaudicc profile` of a model: nodes of all layers on engines, with the attention before and after."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from gaudicc.capture import capture
from gaudicc.cli import main
from gaudicc.compiler import split_pipeline
from gaudicc.machine import Engine, load_chip
from gaudicc.modelled import ModelledRun, modelled_run
from gaudicc.models import load
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.split_attention import SplitAttention
from gaudicc.profile.modelled import activities_of
from gaudicc.targets import load_target
from gaudicc.verify import Level

DATA = Path(__file__).parent / "data"


def run_of(layers: int, step: SplitAttention) -> ModelledRun:
    model, inputs = load("llama", layers=layers, batch=1, sequence=512)
    program = capture(model, dict(inputs))
    program.target = load_target("gaudi2")
    passes = [step if isinstance(entry, SplitAttention) else entry for entry in DEFAULT_PIPELINE]
    for pipeline in split_pipeline(passes):
        program, _ = pipeline.run(program, level=Level.STRUCTURE)
    return modelled_run(program, load_chip("gaudi2"))


@pytest.fixture(scope="module")
def runs() -> dict[int, ModelledRun]:
    return {layers: run_of(layers, SplitAttention()) for layers in (2, 4)}


def test_every_layer_is_run(runs: dict[int, ModelledRun]) -> None:
    counts = {layers: sum(entry.op == "softmax_tile" for entry in activities_of(run)) for layers, run in runs.items()}
    assert counts[4] == 2 * counts[2] > 0
    assert len({entry.name for entry in activities_of(runs[4])}) == len(activities_of(runs[4]))


def test_layers_wait_for_each_other(runs: dict[int, ModelledRun]) -> None:
    run = runs[4]
    assert run.bound <= run.timeline.makespan
    assert run.bound > 1.7 * runs[2].bound, "a chain of twice the layers"
    softmaxes = [entry for entry in activities_of(run) if entry.op == "softmax_tile"]
    by_layer: dict[str, list[tuple[float, float]]] = {}
    for entry in softmaxes:
        by_layer.setdefault(entry.name.split("/")[0], []).append((entry.start, entry.end))
    ordered = list(by_layer.values())
    for before, after in pairwise(ordered):
        assert max(end for _, end in before) <= min(start for start, _ in after)


def test_slices_overlap_and_beat_the_whole(runs: dict[int, ModelledRun]) -> None:
    whole = run_of(2, SplitAttention(most_slices=1))
    assert runs[2].timeline.makespan < whole.timeline.makespan
    assert runs[2].timeline.busy(Engine.MME) < whole.timeline.busy(Engine.MME), "masked blocks are skipped"


def test_the_command_prints_tables_and_writes_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, svg = tmp_path / "out.json", tmp_path / "out.svg"
    options = ["--sequence", "512", "--target", "gaudi2", "--trace", str(trace), "--svg", str(svg)]
    assert main(["profile", "llama", *options, "--read", str(DATA / "torch_profiler.json")]) == 0
    out = capsys.readouterr().out
    assert "attention by cost (modelled)" in out
    assert "torch_profiler.json (from a trace)" in out
    lanes = {e["args"]["name"] for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "M"}
    assert {"[HD0] MME", "[HD0] TPC", "attention unsplit (modelled)"} <= lanes
    assert svg.read_text().startswith("<svg")


def test_a_bucket_of_what_varies(capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--sequence",
        "8",
        "--dynamic",
        "sequence=2..64",
        "--bucket",
        "sequence=64",
        "--node-us",
        "0.5",
        "--json",
    ]
    assert main(["profile", "llama", *options]) == 0
    whole, split = json.loads(capsys.readouterr().out)
    assert whole["modelled"] is split["modelled"] is True
    assert split["window"] >= split["bound"] > 0


def test_nothing_to_profile_is_a_users_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile"]) == 1
    assert "nothing to profile" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "what"),
    [(("--node-us", "-1"), "cannot start"), (("--node-us", "nan"), "cannot start"), (("--runs", "2"), "--calibrate")],
)
def test_options_without_meaning_are_refused(
    options: tuple[str, ...], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "llama", *options]) == 1
    said = capsys.readouterr().err
    assert what in said
    assert "compiling" not in said
