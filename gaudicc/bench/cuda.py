"""`gaudicc bench cuda`: recorded graphs on an NVIDIA GPU, beside eager PyTorch and torch.compile with CUDA graphs.

All in one process, taking turns. The peer runs as its users run it: `mode="reduce-overhead"`, which records a CUDA
graph of its own for every new shape.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.bench.cuda_decode import STEPS, Decode, measure_agreement, measure_decode, wait
from gaudicc.bench.turns import Turn, take_turns, timed
from gaudicc.cli.options_cuda import BenchCudaOptions
from gaudicc.cli.output import print_json, say
from gaudicc.models.transformers_models import build

Run = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class Requests:
    """One contender's way through the requests.

    Attributes:
        first: the first pass, whatever it compiles and records included.
        later: the median of the passes after it.
        error: largest difference of any output from eager in float32, absolute.
        recorded: graphs recorded, or None where that is not known.
    """

    first: Turn
    later: Turn
    error: float
    recorded: int | None


def inputs_of(options: BenchCudaOptions) -> list[dict[str, Tensor]]:
    """The requests: sizes spread evenly over the ranges, in random order; the last tokens of each row are pads."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in torch.randperm(options.requests, generator=generator).tolist():
        rows = 1 + (options.rows - 1) * (index * 7 % options.requests) // max(options.requests - 1, 1)
        length = max(2, options.length * (index + 1) // options.requests)
        ids = torch.randint(3, 90, (rows, length), generator=generator)
        mask = (torch.arange(length) < torch.randint(length // 2, length + 1, (rows, 1), generator=generator)).long()
        made.append({name: value.to(options.device) for name, value in (("input_ids", ids), ("attention_mask", mask))})
    return made


def encoder(options: BenchCudaOptions, dtype: torch.dtype) -> nn.Module:
    """A BERT with random weights."""
    width = options.width // 2
    sizes: dict[str, Any] = {"hidden_size": width, "num_attention_heads": width // 64, "intermediate_size": 4 * width}
    made = build("bert", task="encoder", layers=max(options.layers // 2, 1), **sizes, vocab_size=8192)
    return made.to(options.device, dtype)  # the same numbers in every dtype


def contenders(model: nn.Module, options: BenchCudaOptions) -> dict[str, Callable[[], Run]]:
    """Name -> what makes it ready to run: compiling and recording, for those who do."""

    def own() -> Run:
        rows, tokens = Dim("rows", min=1, max=options.rows), Dim("tokens", min=2, max=options.length)
        shapes = {name: {0: rows, 1: tokens} for name in ("input_ids", "attention_mask")}
        compiled = gaudicc.compile(model, inputs_of(options)[0], dynamic_shapes=shapes, device=options.device)
        compiled.warm_up()
        return _Compiled(compiled)

    def eager() -> Run:
        return lambda given: model(**given).last_hidden_state

    def compiler() -> Run:
        fast = torch.compile(model, mode="reduce-overhead")
        return lambda given: fast(**given).last_hidden_state.clone()  # the next replay writes what it returns

    known = {"eager": eager, "compile": compiler}
    return {"gaudicc": own, **{name: known[name] for name in options.peers}}


class _Compiled:
    def __init__(self, compiled: gaudicc.CompiledModel) -> None:
        self.compiled = compiled

    def __call__(self, given: Mapping[str, Tensor]) -> Tensor:
        result: Tensor = self.compiled(**given).last_hidden_state
        return result


def measure_requests(options: BenchCudaOptions) -> dict[str, Requests]:
    """All contenders on all requests, in bfloat16 on a GPU; each request is waited for."""
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    model, given = encoder(options, dtype), inputs_of(options)
    expected = [_valid(encoder(options, torch.float32)(**one).last_hidden_state, one) for one in given]
    runs: dict[str, Run] = {}
    first: dict[str, Turn] = {}

    def pass_of(run: Run) -> Callable[[], None]:
        def whole() -> None:
            for one in given:
                run(one)
                wait()

        return whole

    for name, make in contenders(model, options).items():
        say(f"{name}: first pass")

        def ready(name: str = name, make: Callable[[], Run] = make) -> None:
            runs[name] = make()
            pass_of(runs[name])()

        first[name] = timed(ready)
    say("later passes")
    later = take_turns({name: pass_of(run) for name, run in runs.items()}, options.rounds)
    errors = {
        name: max(
            float((_valid(run(one), one) - wanted).abs().max()) for one, wanted in zip(given, expected, strict=True)
        )
        for name, run in runs.items()
    }
    recorded = {name: run.compiled.stats.records for name, run in runs.items() if isinstance(run, _Compiled)}
    return {name: Requests(first[name], later[name], errors[name], recorded.get(name)) for name in runs}


def _valid(hidden: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Hidden states of real tokens; what stands at pads is not compared."""
    return hidden.float() * given["attention_mask"][..., None]


def measure_parity(options: BenchCudaOptions) -> dict[str, float]:
    """Largest absolute differences in float32 between gaudicc here, gaudicc on the CPU, and eager here."""
    model, some = encoder(options, torch.float32), inputs_of(options)[:8]
    on_cpu = encoder(options, torch.float32).to("cpu")
    shape = {0: Dim("rows", min=1, max=options.rows), 1: Dim("tokens", min=2, max=options.length)}
    shapes = {"input_ids": shape, "attention_mask": shape}
    here = gaudicc.compile(model, some[0], dynamic_shapes=shapes, device=options.device, buckets="pad")
    host = [{name: value.cpu() for name, value in one.items()} for one in some]
    there = gaudicc.compile(on_cpu, host[0], dynamic_shapes=shapes, device="cpu", buckets="pad")
    largest = {
        "gaudicc here / eager here": 0.0,
        "gaudicc here / gaudicc on the CPU": 0.0,
        "eager here / eager on the CPU": 0.0,
    }
    for one, same in zip(some, host, strict=True):
        mine, eager = (_valid(run(**one).last_hidden_state, one).cpu() for run in (here, model))
        theirs, plain = (_valid(run(**same).last_hidden_state, same) for run in (there, on_cpu))
        for name, difference in zip(largest, (mine - eager, mine - theirs, eager - plain), strict=True):
            largest[name] = max(largest[name], float(difference.abs().max()))
    return largest


def run(options: BenchCudaOptions) -> int:
    """Runs the command; each table is printed as soon as it is measured.

    Returns:
        The exit code, 0.
    """
    show: Callable[[str], None] = (lambda text: None) if options.json else lambda text: print(text, flush=True)
    show(_head(options))
    with torch.no_grad():
        requests = measure_requests(options)
        show(_requests_table(options, requests))
        parity = measure_parity(options)
        show(_parity_table(parity))
        decode = measure_decode(options)
        show(_decode_table(options, decode))
        agreed = measure_agreement(options)
        show(f"\nIn float32, {agreed[0]} of {agreed[1]} greedy tokens are those of transformers' generate.")
    if options.json:
        found: dict[str, Mapping[str, Any]] = {"requests": requests, "decode": decode}
        data = {part: {name: asdict(one) for name, one in rows.items()} for part, rows in found.items()}
        print_json({**data, "parity": parity, "tokens": agreed, "device": _device(options), "torch": torch.__version__})
    return 0


def _device(options: BenchCudaOptions) -> str:
    return torch.cuda.get_device_name() if options.device == "cuda" else f"CPU ({platform.machine()}), no CUDA graphs"


def _dtype(options: BenchCudaOptions) -> str:
    return "bfloat16" if options.device == "cuda" else "float32"


def _head(options: BenchCudaOptions) -> str:
    return (
        "<!-- gaudicc bench cuda > docs/tables/bench_cuda.md -->\n\n"
        f"{_device(options)}, torch {torch.__version__}, medians of {options.rounds} interleaved rounds, wall time. `compile` "
        'is torch.compile(mode="reduce-overhead").'
    )


def _requests_table(options: BenchCudaOptions, requests: Mapping[str, Requests]) -> str:
    lines = [
        "",
        f"{options.requests} requests of 1 to {options.rows} rows and up to {options.length} tokens, each waited for; a BERT "
        f"of {max(options.layers // 2, 1)} layers of {options.width // 2}, {_dtype(options)}; the error is to eager float32.",
        "",
        "| | first pass, compiling included, s | a later pass, ms | per request, ms | largest error | graphs |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in requests.items():
        each = one.later.wall_s * 1e3 / options.requests
        graphs = "" if one.recorded is None else str(one.recorded)
        cells = (f"{one.first.wall_s:.2f}", f"{one.later.wall_s * 1e3:.1f}", f"{each:.3f}", f"{one.error:.4f}", graphs)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _parity_table(parity: Mapping[str, float]) -> str:
    rows = [f"| {name} | {value:.2e} |" for name, value in parity.items()]
    return "\n".join(["", "The encoder in float32, largest absolute difference:", "", "| | |", "|---|---|", *rows])


def _decode_table(options: BenchCudaOptions, decode: Mapping[str, Decode]) -> str:
    lines = [
        "",
        f"One decode step of a Llama of {options.layers} layers of {options.width}, batch 1, up to {options.context} tokens "
        f"in the cache, {_dtype(options)}: a chunk of {STEPS} steps, divided.",
        "",
        "| | compiling and the first chunk, s | decode step, ms |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {one.compile_s:.2f} | {one.step.wall_s * 1e3:.3f} |" for name, one in decode.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    from gaudicc.cli.app import main

    sys.exit(main(["bench", "cuda", *sys.argv[1:]]))
