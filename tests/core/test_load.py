"""Save and load across processes: two regions, two segments, mutated state, and none of the model's code."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gaudicc
from gaudicc.errors import BundleError, DeviceError, InputError
from gaudicc.nodes import regions_called
from gaudicc.plan import HostOp, Record
from gaudicc.program import InputKind

# The model's own package, which the loading process must not need. Two kinds of layers (two regions), an op of the host
# between them (two segments and more), a buffer that grows (state), and an output type of its own.
MODEL = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Answer:
    scores: torch.Tensor
    extra: dict

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))

class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
    def forward(self, x):
        return torch.tanh(self.linear(x)) * 0.5 + x

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.ModuleList(Wide() for _ in range(3))
        self.second = nn.ModuleList(Narrow() for _ in range(3))
        self.register_buffer("seen", torch.zeros(8))
        self.register_buffer("calls", torch.zeros(1, dtype=torch.int64))
    def forward(self, x, scale: float = 2.0):
        self.calls.add_(1)
        self.seen.add_(x.sum(0))
        for layer in self.first:
            x = layer(x)
        x = x + torch.linalg.eigvalsh(x.t() @ x)
        for layer in self.second:
            x = layer(x)
        return Answer(x * scale + self.seen, {"calls": self.calls + 0, "name": "answer"})
"""

LOAD = """
import json, sys, torch
import gaudicc
path, inputs, results = sys.argv[1:]
compiled = gaudicc.load(path)
given = torch.load(inputs)
outputs = []
for x in given:
    answer = compiled(x)
    outputs.append((answer.scores, answer.extra["calls"], answer.extra["name"]))
torch.save([o[:2] for o in outputs], results)
print(json.dumps({
    "names": [o[2] for o in outputs],
    "modules": [name for name in sys.modules if "stranger" in name or "transformers" in name],
    "type": type(answer).__name__,
    "stats": [compiled.stats.records, compiled.stats.host_ops],
    "trace": len(compiled.trace),
}))
"""


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The model's module, imported here only, from a folder that no other process looks into."""
    path = tmp_path_factory.mktemp("elsewhere") / "stranger_model.py"
    path.write_text(MODEL)
    spec = importlib.util.spec_from_file_location("stranger_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stranger_model"] = module
    spec.loader.exec_module(module)
    return module


def test_a_process_without_the_models_code_gives_the_same(stranger: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = stranger.Model().eval()
    inputs = [torch.randn(2, 8) for _ in range(3)]
    compiled = gaudicc.compile(model, (inputs[0],), on_unsupported="host")
    assert {body for _, body in regions_called(compiled.static_program().root.graph)} == {"wide", "narrow"}
    steps = [type(step) for step in compiled.plan().steps]
    assert steps == [Record, HostOp, Record]
    assert sum(spec.kind is InputKind.STATE for spec in compiled.program.inputs) == 2
    compiled.save(tmp_path / "bundle.zip")
    torch.save(inputs, tmp_path / "inputs.pt")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            LOAD,
            str(tmp_path / "bundle.zip"),
            str(tmp_path / "inputs.pt"),
            str(tmp_path / "results.pt"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["modules"] == [], "the loading process imported the model's code"
    assert said["names"] == ["answer"] * 3
    assert said["stats"] == [2, 3]
    assert said["trace"] == 0
    assert said["type"] == "Record", "a class that is not there is stood in for by a dict with attributes"
    for x, (scores, calls) in zip(inputs, torch.load(tmp_path / "results.pt"), strict=True):
        expected = model(x)
        torch.testing.assert_close(scores, expected.scores, rtol=1e-5, atol=1e-5)
        assert torch.equal(calls, expected.extra["calls"])


def test_a_bundle_read_back_is_the_same_model(stranger: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = stranger.Model().eval()
    x = torch.randn(2, 8)
    compiled = gaudicc.compile(model, (x,), on_unsupported="host")
    compiled.save(tmp_path / "b")
    loaded = gaudicc.load(tmp_path / "b", device="cpu")
    assert loaded.guards == compiled.guards
    assert str(loaded.plan()) == str(compiled.plan())
    assert loaded.certificate.as_json() == compiled.certificate.as_json()
    assert list(loaded.buckets) == list(compiled.buckets)
    for _ in range(2):
        a, b = loaded(x), compiled(x)
        assert type(a) is type(b) is stranger.Answer
        torch.testing.assert_close((a.scores, a.extra["calls"]), (b.scores, b.extra["calls"]))
    loaded.save(tmp_path / "again.zip")
    again = gaudicc.load(tmp_path / "again.zip")
    assert str(again.static_program().root.graph) == str(compiled.static_program().root.graph)


def test_loading_shares_nothing_with_the_model_that_was_saved(tmp_path: Path) -> None:
    linear = torch.nn.Sequential(torch.nn.Linear(8, 4)).eval()
    x = torch.randn(2, 8)
    gaudicc.compile(linear, (x,)).save(tmp_path / "b")
    expected = linear(x).detach().clone()
    loaded = gaudicc.load(tmp_path / "b")
    with torch.no_grad():
        linear[0].weight.zero_()  # type: ignore[operator]
    torch.testing.assert_close(loaded(x), expected)


def test_what_load_is_given_is_checked(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        gaudicc.load(tmp_path / "nothing")
    gaudicc.compile(lambda x: x + 1, (torch.ones(2),)).save(tmp_path / "b")
    with pytest.raises(DeviceError, match="unknown device 'tpu'"):
        gaudicc.load(tmp_path / "b", device="tpu")
    with pytest.raises(InputError, match="outputs is 'view'"):
        gaudicc.load(tmp_path / "b", outputs="view")
