"""`gaudicc bench story`: a CUDA-style stack on a Gaudi, stage by stage, from "as is" to recorded graphs.

Counts come from the emulated device, seconds per token from the machine model, CPU time is measured here. Each stage runs in
a process of its own (`story_stages`). On a Gaudi the device's own metrics count and its time is measured; nobody has done so yet.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gaudicc.bench import story_shape
from gaudicc.bench.story_stages import STAGES
from gaudicc.cli.options_story import BenchStoryOptions
from gaudicc.cli.output import print_json, say
from gaudicc.errors import InputError, InternalError
from gaudicc.machine import CHIPS, Chip, load_chip

TITLES = {
    "as is": "as is",
    "eager": "complex numbers on the host, eager mode",
    "lazy": "complex numbers on the host, lazy mode",
    "legalised": "legalised, lazy mode, every length a new shape",
    "recorded": "static, bucketed, recorded",
    "split": "the same, attention split",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One stage over the whole stream, per request where not said otherwise.

    Attributes:
        stage: its title.
        raised: why it does not run, or "".
        fallbacks: ops that ran on the host.
        crossings: copies between host and device, and values read.
        kib: KiB moved by both.
        launches: graphs, ops or recordings launched by the host.
        compiles: graphs compiled while the stream was served, in all.
        warm: graphs compiled before it, in all.
        micros: chip -> modelled microseconds a token, compiling left out.
        with_compiling: chip -> the same with what was compiled while serving.
        cpu_ms: milliseconds on this CPU: of the stack in eager PyTorch, or of gaudicc's CPU device where graphs are recorded.
        error: largest difference of a logit to eager on the CPU.
        measured: microseconds a token on a real Gaudi; None on the emulated one.
    """

    stage: str
    raised: str = ""
    fallbacks: float = 0
    crossings: float = 0
    kib: float = 0
    launches: float = 0
    compiles: int = 0
    warm: int = 0
    micros: Mapping[str, float] | None = None
    with_compiling: Mapping[str, float] | None = None
    cpu_ms: float = 0
    error: float = 0
    measured: float | None = None


def run(options: BenchStoryOptions) -> int:
    """Runs the command.

    Returns:
        The exit code, 0.

    Raises:
        InputError: an option has no meaning.
    """
    if options.shape is not None:
        calls = list(story_shape.rows(options.shape, say))
        if options.json:
            print_json([asdict(row) for row in calls])
        else:
            print(story_shape.shape_table(options.shape, calls, stream(options.requests, 4 * story_shape.PROMPT)))
        return 0
    if options.requests < 1 or options.longest < 2 or options.layers < 1:
        raise InputError("requests, longest and layers are too small", hint="give 1, 2 and 1 or more")
    lengths, buckets = stream(options.requests, options.longest), sizes(options.longest)
    outcomes = {}
    for stage in STAGES:
        say(f"stage: {TITLES[stage]}")
        outcomes[stage] = _outcome(stage, options.layers, lengths, buckets)
    rows = tell(outcomes, lengths, buckets)
    if options.json:
        print_json({"lengths": lengths, "buckets": buckets, "rows": [asdict(row) for row in rows]})
    else:
        print((measured_table if any(row.measured is not None for row in rows) else table)(rows, len(lengths)))
    return 0


def stream(requests: int, longest: int) -> list[int]:
    """Lengths of the prompts: many short, few long, seeded."""
    generator = random.Random(0)
    return [min(longest, 1 + int(generator.expovariate(4 / longest))) for _ in range(requests)]


def sizes(longest: int) -> list[int]:
    """Buckets: powers of two up to the longest prompt."""
    found = [8]
    while found[-1] < longest:
        found.append(found[-1] * 2)
    return found


def _outcome(stage: str, layers: int, lengths: Sequence[int], buckets: Sequence[int]) -> dict[str, Any]:
    work = json.dumps({"stage": stage, "layers": layers, "lengths": list(lengths), "buckets": list(buckets)})
    environment = {**os.environ, "PT_HPU_LAZY_MODE": "0" if stage in ("as is", "eager") else "1"}
    command = [sys.executable, "-m", "gaudicc.bench.story_stages", work]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise InternalError(f"the stage {stage!r} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def tell(outcomes: Mapping[str, Mapping[str, Any]], lengths: Sequence[int], buckets: Sequence[int]) -> list[Row]:
    """What the stages did, priced.

    Args:
        outcomes: stage -> what `story_stages` printed.
        lengths: of the requests.
        buckets: sizes that are recorded.
    """
    return [_row(stage, outcomes, lengths, buckets) for stage in outcomes]


def _row(stage: str, outcomes: Mapping[str, Mapping[str, Any]], lengths: Sequence[int], buckets: Sequence[int]) -> Row:
    found, count = outcomes[stage], len(lengths)
    if "raised" in found:
        return Row(TITLES[stage], raised=str(found["raised"]))
    if "measured" in found:
        tokens, per_request = sum(lengths), found["fallback"] / count
        return Row(
            TITLES[stage], "", per_request, compiles=found["compile"], warm=found["warm"], cpu_ms=found["cpu"] / count * 1e3,
            error=found["error"], measured=found["measured"] / tokens * 1e6,
        )  # fmt: skip
    recorded = found["replay"] > 0
    priced = {name: _seconds(stage, outcomes, lengths, buckets, load_chip(name)) for name in CHIPS}
    tokens = sum(lengths)
    return Row(
        TITLES[stage],
        "",
        found["fallback"] / count,
        _crossings(found) / count,
        found["bytes"] / count / 1024,
        (found["replay"] if recorded else found["compile"] + found["hit"]) / count,
        found["compile"],
        found["warm"],
        {name: serving / tokens * 1e6 for name, (serving, _) in priced.items()},
        {name: (serving + compiling) / tokens * 1e6 for name, (serving, compiling) in priced.items()},
        found["cpu"] / count * 1e3,
        found["error"],
    )


def _crossings(found: Mapping[str, Any]) -> int:
    return int(found["to_host"] + found["to_device"] + found["host_read"])


def _seconds(
    stage: str,
    outcomes: Mapping[str, Mapping[str, Any]],
    lengths: Sequence[int],
    buckets: Sequence[int],
    chip: Chip,
) -> tuple[float, float]:
    """Modelled seconds of the stream, and of what it compiles.

    The device computes what the legal program does, in every stage; what differs is how the host drives it, and what crosses.
    """
    found, host = outcomes[stage], chip.host
    sized = stage in ("recorded", "split")
    runs = outcomes[stage if sized else "legalised"]["device"][chip.name]
    places = [str(min(size for size in buckets if size >= length) if sized else length) for length in lengths]
    device = sum(runs[place][0] for place in places)
    nodes = sum(runs[place][1] for place in places)
    ops = outcomes["eager"]["compile"] + outcomes["eager"]["hit"]  # what the front end dispatches in either mode
    driving = {
        "eager": ops * host.eager_op_seconds,
        "lazy": ops * host.lazy_op_seconds,
        "legalised": nodes * host.lazy_op_seconds,
    }.get(stage, found["replay"] * host.replay_seconds)
    crossing = (_crossings(found) + 2 * found["fallback"]) * host.transfer_latency + found[
        "bytes"
    ] / host.pcie_bandwidth
    return max(device, driving) + crossing, found["compiled_ops"] * host.compile_seconds_per_node


def measured_table(rows: Sequence[Row], requests: int) -> str:
    """The story of a real Gaudi as Markdown."""
    names = ["stage", "fallbacks", f"compiles in {requests}", "compiled before", "us a token, measured", "CPU here, ms",
             "largest error"]  # fmt: skip
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in rows:
        if row.measured is None:
            lines.append(f"| {row.stage} | does not run: {row.raised} |" + " |" * (len(names) - 2))
            continue
        cells = [row.stage, f"{row.fallbacks:.1f}", str(row.compiles), str(row.warm), f"{row.measured:.0f}"]
        lines.append(f"| {' | '.join([*cells, f'{row.cpu_ms:.1f}', f'{row.error:.0e}'])} |")
    return "\n".join(lines)


def table(rows: Sequence[Row], requests: int) -> str:
    """The story as Markdown."""
    chips = [f"{name}, us a token" for name in CHIPS] + [f"{name} with compiling" for name in CHIPS]
    names = ["stage", "fallbacks", "crossings", "KiB moved", "launches", f"compiles in {requests}", "compiled before"]
    names += [*chips, "CPU here, ms", "largest error"]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in rows:
        if row.raised:
            lines.append(f"| {row.stage} | does not run: {row.raised} |" + " |" * (len(names) - 2))
            continue
        assert row.micros is not None, "priced"
        assert row.with_compiling is not None, "priced"
        cells = [row.stage, f"{row.fallbacks:.1f}", f"{row.crossings:.1f}", f"{row.kib:.1f}", f"{row.launches:.1f}"]
        cells += [str(row.compiles), str(row.warm)]
        cells += [f"{value:.0f}" for value in (*row.micros.values(), *row.with_compiling.values())]
        lines.append(f"| {' | '.join([*cells, f'{row.cpu_ms:.1f}', f'{row.error:.0e}'])} |")
    return "\n".join(lines)
