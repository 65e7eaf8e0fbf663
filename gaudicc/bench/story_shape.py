"""The story's stages for a model of billions of parameters, from its dimensions alone; every figure is modelled.

The ops are those of a legal program with fused norms and rotary embedding (`gaudicc.machine.decoder`), the same in each stage;
what differs is how the host drives them. A port as it is has more ops, so its first two columns are a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gaudicc.errors import InputError
from gaudicc.machine import CHIPS, Mode, Step, decoder_step, known_decoders, load_chip, record_cost, run_cost

STEPS = (
    ("prompt of 64", Step(1, 64, 64)),
    ("prompt of 512", Step(1, 512, 512)),
    ("prompt of 2048", Step(1, 2048, 2048)),
    ("a token after 512", Step(1, 1, 512)),
    ("a token after 512, batch 32", Step(32, 1, 512)),
)


@dataclass(frozen=True, slots=True)
class ShapeRow:
    """One call on one chip.

    Attributes:
        step: what is computed.
        chip: where.
        nodes: ops of the device.
        seconds: stage -> wall time of a call that finds its graphs compiled.
        compiling: seconds that a call of a new shape compiles for in lazy mode.
    """

    step: str
    chip: str
    nodes: int
    seconds: dict[str, float]
    compiling: float


def rows(name: str) -> Iterator[ShapeRow]:
    """The calls of a model on each chip.

    Args:
        name: a name of `gaudicc.machine.known_decoders`.

    Raises:
        InputError: there is no such model.
    """
    if name not in known_decoders():
        raise InputError(f"no dimensions of {name!r} are known", hint=f"one of: {', '.join(known_decoders())}")
    for chip in map(load_chip, CHIPS):
        for title, step in STEPS:
            work = decoder_step(known_decoders()[name], step)
            costs = {mode: run_cost(work, chip, mode=mode) for mode in (Mode.EAGER, Mode.LAZY, Mode.RECORDED)}
            nodes = costs[Mode.LAZY].nodes
            seconds = {mode.value: cost.seconds for mode, cost in costs.items()}
            yield ShapeRow(title, chip.name, nodes, seconds, record_cost(nodes, chip).compile_seconds)


def shape_table(name: str) -> str:
    """The calls as Markdown."""
    lines = [
        f"| {name}, modelled | chip | ops | eager, ms | lazy, ms | recorded, ms | eager / recorded | a new shape compiles, ms |",
        f"|{'---|' * 8}",
    ]
    for row in rows(name):
        eager, lazy, recorded = (row.seconds[mode] * 1e3 for mode in ("eager", "lazy", "recorded"))
        cells = [row.step, row.chip, str(row.nodes), f"{eager:.1f}", f"{lazy:.1f}", f"{recorded:.1f}"]
        lines.append(f"| {' | '.join([*cells, f'{eager / recorded:.1f}', f'{row.compiling * 1e3:.0f}'])} |")
    return "\n".join(lines)
