"""How near a whole layer comes to its bound under the model: prefill, both chips, whole rows and staggered ones.

    python -m gaudicc.profile.layer_table > docs/tables/whole_layer.md       # half an hour on one core
    python -m gaudicc.profile.layer_table Llama-3-8B 1024 2048               # one model, these lengths

Every time is modelled. The layer is compiled as any model is, its weights being memory that nobody reads.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import gaudicc
from gaudicc.machine import CHIPS, Chip, Engine, load_chip, lower_bound, vendor_schedule
from gaudicc.machine.fx_program import ProgramTasks
from gaudicc.machine.split import limits_of
from gaudicc.models import transformers_models
from gaudicc.nodes import body_of, call_region
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.split_attention import SplitAttention
from gaudicc.passes.stagger_rows import StaggerRows
from gaudicc.pipeline import Pass
from gaudicc.program import Program

TOKENS = (1024, 2048, 4096, 8192, 16384, 32768)
# Name -> (family, what its config says besides the family's own), of each model's config.json on its hub page.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama-3-8B": ("llama-3-8b", {}),
    "Llama-3-70B": ("llama-3-70b", {}),
    "Qwen3-32B": (
        "qwen3",
        {
            "hidden_size": 5120,
            "intermediate_size": 25600,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
    ),
    "gpt-oss-20b": (
        "gpt_oss",
        {
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
        },
    ),
}
# What is compared besides rows that are staggered, and the passes that it leaves out.
FORMS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("unsplit", (SplitAttention, StaggerRows)),
    ("attention split", (StaggerRows,)),
)


@dataclass(frozen=True, slots=True)
class LayerRun:
    """One layer under the vendor's policy.

    Attributes:
        seconds: its time: of the schedule, or of HBM alone where that is longer.
        bound: seconds that no schedule of its tasks beats, HBM's own included.
        exposed: seconds in which the TPCs work and the MME does not.
        memory: seconds of HBM for all bytes that are moved.
    """

    seconds: float
    bound: float
    exposed: float
    memory: float


def static_program(name: str, tokens: int, target: str, passes: list[Pass]) -> Program:
    """Two layers of a model of `MODELS`, static and legal."""
    family, config = MODELS[name]
    model = transformers_models.build(
        family, tiny=False, layers=2, dtype=torch.bfloat16, device="meta", task="causal", vocab_size=1024,
        max_position_embeddings=max(TOKENS), **config,
    )  # fmt: skip
    inputs = {"input_ids": torch.zeros(1, tokens, dtype=torch.int64), "use_cache": False}
    compiled = gaudicc.compile(model.to_empty(device="cpu"), inputs, target=target, passes=passes, device="cpu")
    return compiled.static_program()


def layer_run(program: Program, chip: Chip) -> LayerRun:
    """Times a layer of a program alone."""
    call = next(node for node in program.root.graph.nodes if node.target is call_region)
    found = ProgramTasks(chip)
    found.graph(body_of(program.root, call), {})
    timeline = vendor_schedule(found.tasks, limits_of(chip))
    memory = found.hbm_bytes / chip.memory.stream
    seconds, bound = max(timeline.makespan, memory), max(lower_bound(found.tasks), memory)
    return LayerRun(seconds, bound, timeline.exposed(Engine.TPC), memory)


def report(models: Sequence[str], lengths: Sequence[int]) -> Iterator[str]:
    """The page as Markdown, line by line."""
    yield "# A whole layer"
    yield ""
    yield "Made by `python -m gaudicc.profile.layer_table`. One prompt, bf16, causal, node cost 0.1 us, under the"
    yield "vendor's policy. The bound is the least of the three forms' own bounds. Every figure is *modelled*."
    for name in models:
        yield ""
        yield f"## {name}"
        yield ""
        yield "| tokens | chip | form | us | over the bound | exposed TPC us | HBM alone us |"
        yield "|---|---|---|---|---|---|---|"
        for tokens in lengths:
            for target in CHIPS:
                yield from _rows(name, tokens, target)


def _rows(name: str, tokens: int, target: str) -> Iterator[str]:
    chip, runs = load_chip(target), dict[str, LayerRun]()
    for form, left_out in FORMS:
        passes = [step for step in DEFAULT_PIPELINE if not isinstance(step, left_out)]
        program = static_program(name, tokens, target, passes)
        runs[form] = layer_run(program, chip)
    staggered = StaggerRows().run(program.copy())
    runs[_said(staggered.notes)] = layer_run(staggered.program, chip)
    bound = min(run.bound for run in runs.values())
    for form, run in runs.items():
        cells = [f"{tokens:,}", target, form, f"{run.seconds * 1e6:,.0f}", f"{run.seconds / bound:.3f}"]
        yield f"| {' | '.join([*cells, f'{run.exposed * 1e6:,.0f}', f'{run.memory * 1e6:,.0f}'])} |"


def _said(notes: Sequence[str]) -> str:
    """What became of the rows of a layer, and whether long ops were brought forward."""
    told = re.search(r"rows (in \d parts?[a-z, ]*|left whole)", notes[0]) if notes else None
    forward = ", long ops forward" if notes and "brought forward" in notes[0] else ""
    return f"rows {told[1].replace('in ', 'staggered, in ')}{forward}" if told else "rows staggered"


if __name__ == "__main__":
    asked = [word for word in sys.argv[1:] if word in MODELS]
    sizes = [int(word) for word in sys.argv[1:] if word not in MODELS]
    for line in report(asked or list(MODELS), sizes or TOKENS):
        print(line, flush=True)
