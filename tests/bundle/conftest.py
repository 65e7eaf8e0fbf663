import json
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from gaudicc.bundle import write_bundle
from gaudicc.capture import capture
from gaudicc.program import Guard, Program
from gaudicc.targets import Engine, load_target

Pair = namedtuple("Pair", ["mean", "scaled"])


@dataclass
class Result:
    hidden: Tensor
    pair: Pair
    extra: dict[str, Any]
    nothing: Tensor | None = None


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.inner(x)).masked_fill(x > 3, float("-inf")).clamp(min=-1.0)


class Stack(nn.Module):
    """Small, with all that a bundle must hold: regions, state, tied weights, sizes, nested outputs, static values."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Block() for _ in range(3)]
        self.layers = nn.ModuleList(blocks)
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = blocks[0].inner.weight
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, x: Tensor, factor: float = 2.0) -> Result:
        self.calls.add_(1.0)
        batch = x.shape[0]
        for layer in self.layers:
            x = layer(x)
        flat = x.reshape(batch * 4)
        pair = Pair(self.head(x).mean(), flat * factor)
        return Result(x[:, :2], pair, {"list": [x.sum(), "label"], "half": x.to(torch.float16)})


def make_program(*, dynamic: bool) -> Program:
    torch.manual_seed(0)
    shapes = {"x": {0: Dim("batch", min=1, max=16)}, "factor": None} if dynamic else None
    program = capture(Stack().eval(), (torch.randn(3, 4),), dynamic_shapes=shapes)
    program.target = load_target("gaudi3")
    program.notes = ("a note",)
    for _, module in program.graphs():
        for node in module.graph.nodes:
            if node.op == "call_function":
                node.meta["engine"] = Engine.TPC
    if dynamic:
        return replace(program, guards=(Guard("1 <= x.shape[0] <= 16", "the range of batch (model.py:3)"),))
    return program


@pytest.fixture(scope="session")
def programs() -> dict[str, Program]:
    return {"captured": make_program(dynamic=True), "bucket:batch=3": make_program(dynamic=False)}


@pytest.fixture(scope="session")
def saved_zip(programs: dict[str, Program], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("zip") / "bundle.zip"
    write_bundle(path, programs, {"made by": "a test"})
    return path.read_bytes()


@pytest.fixture(scope="session")
def saved_folder(programs: dict[str, Program], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("folder") / "bundle"
    write_bundle(path, programs, {"made by": "a test"})
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(scope="session")
def content(saved_folder: dict[str, bytes]) -> Any:
    return json.loads(saved_folder["bundle.json"])


@pytest.fixture(scope="session")
def doctor(saved_folder: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """Writes a folder bundle with another bundle.json (a value, or the text itself)."""
    path = tmp_path_factory.mktemp("doctored")
    for name, data in saved_folder.items():
        (path / name).write_bytes(data)

    def write(json_value: Any) -> Path:
        text = json_value if isinstance(json_value, bytes) else json.dumps(json_value).encode()
        (path / "bundle.json").write_bytes(text)
        return path

    return write
