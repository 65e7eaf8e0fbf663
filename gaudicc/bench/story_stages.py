"""One stage of `gaudicc bench story`, in a process of its own: the device of a process is emulated in one mode or not at all.

`python -m gaudicc.bench.story_stages '{"stage": ..., ...}'` prints what happened as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

import gaudicc
import gaudicc.emulator
from gaudicc.compiled import CompiledModel
from gaudicc.emulator.ledger import Kind
from gaudicc.machine import CHIPS, load_chip
from gaudicc.modelled import modelled_run
from gaudicc.models import cuda_style_llm
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.split_attention import SplitAttention
from gaudicc.runtime.device import Device
from gaudicc.runtime.hpu import HpuDevice
from gaudicc.runtime.hpu_pieces import DeviceProgram, Name
from gaudicc.runtime.hpu_probe import counting
from gaudicc.runtime.hpu_software import emulated, installed, start
from gaudicc.runtime.runner import Counters, Runner
from gaudicc.runtime.select import open_device

Answer = Callable[[Tensor], Tensor]
"""Token ids `[1, length]` on the host -> logits of the last token `[vocabulary]` on the host."""
STAGES = ("as is", "eager", "lazy", "legalised", "recorded", "split")


@dataclass(frozen=True)
class Work:
    """What every stage does.

    Attributes:
        stage: one of `STAGES`.
        layers: of the stack.
        lengths: of the requests, in order.
        buckets: sizes that are recorded.
    """

    stage: str
    layers: int
    lengths: tuple[int, ...]
    buckets: tuple[int, ...]

    def requests(self) -> Iterator[Tensor]:
        """Seeded token ids `[1, length]`."""
        generator = torch.Generator().manual_seed(0)
        for length in self.lengths:
            yield torch.randint(3, 200, (1, length), generator=generator)

    def model(self) -> Last:
        """The stack, the same in every stage."""
        return Last(cuda_style_llm.build("small", n_layer=self.layers)).eval()

    def size(self, length: int) -> int:
        """What a request of a length is padded to."""
        if self.stage not in ("recorded", "split"):
            return length
        return min(size for size in self.buckets if size >= length)


class Last(nn.Module):
    """The stack's answer to a prompt: the logits of its last token."""

    def __init__(self, inner: cuda_style_llm.Transformer) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor, start: Tensor) -> Tensor:
        """Logits `[batch, vocabulary]`; `start` is the column at which each row begins."""
        logits: Tensor = self.inner(tokens, None, start)[0][:, -1]
        return logits


def measure(work: Work) -> dict[str, Any]:
    """Runs a stage over the stream.

    Returns:
        Counts over the stream and while warming up, the largest difference to eager on the CPU, seconds on this CPU, and the
        modelled device seconds by chip and size.
    """
    model = work.model()
    with torch.no_grad():
        eager = _eager(model)
        expected = [eager(ids) for ids in work.requests()]
        compiled = _compiled(work, model)
        on_cpu = _timed(work, _padded(work, compiled) if work.stage in ("recorded", "split") else eager)
        if installed() and not emulated():
            return _on_gaudi(work, model, compiled, expected) | {"cpu": on_cpu}
        gaudicc.emulator.install()
        start()
        account = gaudicc.emulator.account()
        answer = _answer(work, model, compiled)
        warm = account.count(Kind.COMPILE)
        account.clear()
        error = 0.0
        for ids, wanted in zip(work.requests(), expected, strict=True):
            error = max(error, float((answer(ids) - wanted).abs().max()))
    found: dict[str, Any] = {kind.name.lower(): account.count(kind) for kind in Kind}
    found["bytes"] = sum(account.bytes(kind) for kind in (Kind.FALLBACK, Kind.TO_HOST, Kind.TO_DEVICE, Kind.MIXED))
    found["compiled_ops"] = sum(entry.count * _ops_of(entry.what) for entry in account.entries(Kind.COMPILE))
    found["subgraphs"] = sum(entry.count * _ops_of(entry.what) for entry in account.entries(Kind.REPLAY))
    return found | {"warm": warm, "error": error, "cpu": on_cpu, "device": _modelled(compiled)}


def _on_gaudi(
    work: Work, model: Last, compiled: Mapping[int, CompiledModel], expected: Sequence[Tensor]
) -> dict[str, Any]:
    """The stage on a real device: what its software's metrics count, and seconds by the clock, after one pass that warms up."""
    start()
    with counting("graph_compilation") as before:
        answer = _answer(work, model, compiled)
        warm = before()["TotalNumber"]
    error = 0.0
    with counting("graph_compilation") as graphs, counting("cpu_fallback") as fallbacks:
        for ids, wanted in zip(work.requests(), expected, strict=True):
            error = max(error, float((answer(ids) - wanted).abs().max()))
        compile, fallback = (metric()["TotalNumber"] for metric in (graphs, fallbacks))
    begun = time.perf_counter()
    for ids in work.requests():
        answer(ids)
    seconds = time.perf_counter() - begun
    return {"measured": seconds, "compile": compile, "fallback": fallback, "warm": warm, "error": error}


def _ops_of(text: str) -> int:
    """The number in `a graph of 5 ops` or `3 sub-graphs`."""
    return next(int(word) for word in text.split() if word.isdigit())


def _compiled(work: Work, model: Last) -> dict[int, CompiledModel]:
    """A compiled model for each size that the stage runs; none where the stack runs as it is."""
    if work.stage in ("as is", "eager", "lazy"):
        return {}
    sizes = sorted(set(work.lengths)) if work.stage == "legalised" else work.buckets
    passes = [step for step in DEFAULT_PIPELINE if work.stage == "split" or not isinstance(step, SplitAttention)]
    start = torch.zeros(1, dtype=torch.int64)
    return {
        size: gaudicc.compile(model, (torch.zeros(1, size, dtype=torch.int64), start), passes=passes, device="cpu")
        for size in sizes
    }


def _modelled(compiled: Mapping[int, CompiledModel]) -> dict[str, dict[str, Any]]:
    """Chip -> size -> seconds of the device, and nodes that it runs."""
    found: dict[str, dict[str, Any]] = {}
    for chip in CHIPS:
        machine = load_chip(chip)
        runs = {size: modelled_run(model.static_program(), machine).timeline for size, model in compiled.items()}
        found[chip] = {str(size): [run.makespan, len(run.events)] for size, run in runs.items()}
    return found


def _timed(work: Work, answer: Answer) -> float:
    """Seconds on this CPU for the whole stream, after one pass over it that is not counted."""
    for ids in work.requests():
        answer(ids)
    begun = time.process_time()
    for ids in work.requests():
        answer(ids)
    return time.process_time() - begun


def _eager(model: Last) -> Answer:
    start = torch.zeros(1, dtype=torch.int64)
    return lambda ids: model(ids, start)[0]


def _padded(work: Work, run: Mapping[int, Callable[[Tensor, Tensor], Tensor]]) -> Answer:
    """Pads on the left, as the stack itself does for ragged prompts."""

    def answer(ids: Tensor) -> Tensor:
        size = work.size(ids.shape[1])
        pads = size - ids.shape[1]
        return run[size](nn.functional.pad(ids, (pads, 0)), torch.tensor([pads]))[0]

    return answer


def _answer(work: Work, model: Last, compiled: Mapping[int, CompiledModel]) -> Answer:
    """How the emulated device answers; recorded graphs are recorded here."""
    if compiled:
        device = HpuDevice(start(), Unrecorded) if work.stage == "legalised" else open_device("hpu")[0]
        return _padded(work, {size: _on(device, each) for size, each in compiled.items()})
    if work.stage != "as is":
        _first_aid(model.inner)
    placed, begin = model.to("hpu"), torch.zeros(1, dtype=torch.int64).to("hpu")
    return lambda ids: placed(ids.to("hpu"), begin)[0].cpu()


def _on(device: Device, compiled: CompiledModel) -> Callable[[Tensor, Tensor], Tensor]:
    runner = Runner(compiled.plan(), compiled.static_program().bound(), device, Counters())
    return lambda *inputs: runner.run(inputs)[0]


class Unrecorded:
    """A legal program run in lazy mode without a recorded graph; see `gaudicc.runtime.hpu.Captured`."""

    bytes_held = 0

    def __init__(self, program: DeviceProgram, bound: Mapping[Name, Tensor], inputs: tuple[Tensor, ...]) -> None:
        self.inputs = inputs
        self._program = program
        self._bound: dict[Name, Any] = {**bound, **dict(zip(program.inputs, inputs, strict=True))}

    @staticmethod
    def expected_bytes(program: DeviceProgram) -> int:
        """Nothing is kept."""
        return 0

    def launch(self) -> Mapping[Name, Any]:
        """Runs it; what reads the results flushes what is gathered."""
        values = dict(self._bound)
        self._program.run(values, lambda call, operands: fx.GraphModule({}, call.piece.graph)(*operands))
        return values

    def release(self) -> None:
        """Nothing is kept."""


class _OnHost:
    """Rotations that stay on the host, for they are complex."""

    def __init__(self, rotary: Tensor) -> None:
        self.rotary = rotary

    def to(self, device: object) -> _OnHost:
        return self

    def __getitem__(self, positions: Tensor) -> Tensor:
        return self.rotary[positions.cpu()]


def _first_aid(stack: cuda_style_llm.Transformer) -> None:
    """The least that a hand port changes so that the stack runs: complex arithmetic goes to the host and back."""
    original = cuda_style_llm.apply_rotary
    changed: Any = stack
    changed.rotary = _OnHost(stack.rotary)
    module: Any = cuda_style_llm
    module.apply_rotary = lambda x, rotary: original(x.cpu(), rotary).to(x.device)


def main(text: str) -> None:
    """Runs the stage that the JSON describes, and prints the outcome."""
    torch.set_num_threads(1)
    fields = json.loads(text)
    work = Work(fields["stage"], fields["layers"], tuple(fields["lengths"]), tuple(fields["buckets"]))
    try:
        print(json.dumps(measure(work)))
    except RuntimeError as error:
        print(json.dumps({"raised": str(error).splitlines()[0]}))


if __name__ == "__main__":
    main(sys.argv[1])
