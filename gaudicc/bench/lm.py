"""`gaudicc bench lm`: decode, prefill and a stream of requests, beside peers and beside what this machine can do at most.

Everything is measured in the same process, taking turns; one process per number of threads. Peers run as their users run
them: eager with a growing cache, `torch.compile` (Inductor) with transformers' static cache for decode.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from gaudicc.bench.lm_floors import Floors, measure_floors
from gaudicc.bench.lm_peers import Contender, contenders, installed
from gaudicc.bench.turns import Turn, take_turns, timed
from gaudicc.cli.options_lm import BenchLmOptions
from gaudicc.cli.output import print_json, say
from gaudicc.models.transformers_models import build

_STEPS = 8  # decode steps of one turn: nobody takes one at a time


@dataclass(frozen=True, slots=True)
class Stream:
    """One contender's way through the stream of prompts.

    Attributes:
        first_wall_s: first pass, whatever it compiles included.
        first_cpu_s: CPU seconds of it, those of compiler processes included.
        second_wall_s: second pass.
        second_cpu_s: CPU seconds of it.
    """

    first_wall_s: float
    first_cpu_s: float
    second_wall_s: float
    second_cpu_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """All that was measured with one number of threads.

    Attributes:
        threads: of torch.
        decode: contender -> one decode step.
        prefill: contender -> one prefill.
        stream: contender -> the stream of prompts.
        floors: what this machine can do at most.
        overhead_us: what one replay costs besides its calls, microseconds.
        tiny: contender -> one decode step of a tiny model of 32 layers.
    """

    threads: int
    decode: dict[str, Turn]
    prefill: dict[str, Turn]
    stream: dict[str, Stream]
    floors: Floors
    overhead_us: float
    tiny: dict[str, Turn]


def measure(options: BenchLmOptions, threads: int) -> Result:
    """Measures in this process."""
    torch.set_num_threads(threads)
    model = build(options.model, task="causal")
    peers = [peer for peer in options.peers if installed(peer)]
    if absent := [peer for peer in options.peers if peer not in peers]:
        say(f"not installed, left out: {', '.join(absent)}")
    runs = contenders(model, peers, options)
    say(f"{threads} threads: the stream, first and second pass")
    stream = {run.name: _stream(run, options) for run in runs}
    say(f"{threads} threads: decode and prefill")
    decode = take_turns({run.name: run.decode(options.context) for run in runs}, options.rounds, repeat=_STEPS)
    prefill = take_turns({run.name: run.prefill_step(options.prompt) for run in runs}, options.rounds)
    say(f"{threads} threads: floors")
    floors = measure_floors(model, options.prompt, options.rounds)
    tiny_model = build("llama", task="causal", layers=32)
    tiny_options = replace(options, context=64)
    tiny_runs = contenders(tiny_model, [peer for peer in peers if peer == "eager"], tiny_options)
    tiny = take_turns({run.name: run.decode(64) for run in tiny_runs}, options.rounds, repeat=_STEPS)
    overhead = runs[0].overhead_us()
    return Result(threads, decode, prefill, stream, floors, overhead, tiny)


def _stream(run: Contender, options: BenchLmOptions) -> Stream:
    lengths = [1 + (2 * options.context - 1) * i // max(options.requests - 1, 1) for i in range(options.requests)]
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    work = [run.prefill_step(lengths[i]) for i in order]

    def whole() -> None:
        for step in work:
            step()

    first, second = timed(whole), timed(whole)
    return Stream(first.wall_s, first.cpu_s, second.wall_s, second.cpu_s)


def run(options: BenchLmOptions) -> int:
    """Runs the command.

    Returns:
        The exit code, 0.
    """
    results = [_in_own_process(replace(options, threads=(threads,))) for threads in options.threads]
    data = {
        "options": {name: value for name, value in asdict(options).items() if name != "save"},
        "torch": torch.__version__,
        "results": results,
    }
    if options.save is not None:
        options.save.write_text(json.dumps(data, indent=2) + "\n")
    if options.json:
        print_json(data)
    else:
        print(markdown(options, results))
    return 0


def _in_own_process(options: BenchLmOptions) -> dict[str, Any]:
    """Inductor compiles for one number of threads, so each gets a process."""
    arguments = json.dumps({**asdict(options), "save": None})
    command = [sys.executable, "-m", "gaudicc.bench.lm", arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def markdown(options: BenchLmOptions, results: list[dict[str, Any]]) -> str:
    """The tables that docs cite: wall time, CPU time in brackets."""
    lines = [
        "<!-- gaudicc bench lm > docs/tables/bench_lm.md -->",
        "",
        f"{options.model}, fp32, batch 1, torch {torch.__version__}, medians of interleaved rounds "
        f"(decode: of {_STEPS} steps each), measured on CPU. Wall time, "
        "CPU time in brackets (other load on the machine shows as the difference).",
    ]
    for result in results:
        floors = result["floors"]
        lines += [
            "",
            f"{result['threads']} thread(s)",
            "",
            f"| | decode at {options.context}, ms | prefill of {options.prompt}, ms | {options.requests} prompts, first pass, s "
            "| second pass, s |",
            "|---|---|---|---|---|",
        ]
        for name in result["decode"]:
            step, prefill, stream = result["decode"][name], result["prefill"][name], result["stream"][name]
            first = f"{stream['first_wall_s']:.1f} ({stream['first_cpu_s']:.1f})"
            second = f"{stream['second_wall_s']:.1f} ({stream['second_cpu_s']:.1f})"
            lines.append(f"| {name} | {_ms(step)} | {_ms(prefill)} | {first} | {second} |")
        lines += [
            f"| floor | {_ms(floors['decode'])} | {_ms(floors['prefill'])} | | |",
            "",
            f"Floors: the products of matrix and vector of one decode step alone, {floors['decode_gb_s']:.1f} GB/s of "
            f"{floors['weight_mb']:.0f} MB of weights; the packed products of the prefill alone, "
            f"{floors['prefill_gflop_s']:.0f} GFLOP/s. One replay costs {result['overhead_us']:.0f} us besides its calls. "
            f"A tiny Llama of 32 layers decodes in {_ms(result['tiny']['gaudicc'])} ms, eager in "
            f"{_ms(result['tiny'].get('eager', result['tiny']['gaudicc']))} ms.",
        ]
    return "\n".join(lines)


def _ms(turn: dict[str, float]) -> str:
    return f"{turn['wall_s'] * 1e3:.1f} ({turn['cpu_s'] * 1e3:.1f})"


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        given = BenchLmOptions(**json.loads(sys.argv[1]))
        print(json.dumps(asdict(measure(given, given.threads[0]))))
    else:
        from gaudicc.cli.app import main

        sys.exit(main(["bench", "lm", *sys.argv[1:]]))
