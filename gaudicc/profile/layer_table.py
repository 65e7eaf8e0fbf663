"""How near a whole layer comes to its bound under the model: Llama-3-8B, prefill, both chips, whole rows and staggered ones.

    python -m gaudicc.profile.layer_table > docs/tables/whole_layer.md

Every time is modelled. The layer is compiled as any model is, its weights being memory that nobody reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

import gaudicc
from gaudicc.machine import CHIPS, Chip, Engine, load_chip, lower_bound, vendor_schedule
from gaudicc.machine.fx_program import ProgramTasks
from gaudicc.machine.split import limits_of
from gaudicc.nodes import call_region
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.split_attention import SplitAttention
from gaudicc.passes.stagger_rows import StaggerRows
from gaudicc.pipeline import Pass

TOKENS = (1024, 2048, 4096, 8192, 16384)
# What is compared, and the passes that it leaves out.
FORMS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("unsplit", (SplitAttention, StaggerRows)),
    ("attention split", (StaggerRows,)),
    ("rows staggered", ()),
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


def layer_run(body: fx.GraphModule, chip: Chip) -> LayerRun:
    """Times a region body alone."""
    found = ProgramTasks(chip)
    found.graph(body, {})
    timeline = vendor_schedule(found.tasks, limits_of(chip))
    memory = found.hbm_bytes / chip.memory.stream
    seconds, bound = max(timeline.makespan, memory), max(lower_bound(found.tasks), memory)
    return LayerRun(seconds, bound, timeline.exposed(Engine.TPC), memory)


def llama_layer(tokens: int, target: str, passes: list[Pass]) -> tuple[fx.GraphModule, str]:
    """(A layer of Llama-3-8B, static and legal; what stagger-rows did to it)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1024, hidden_size=4096, intermediate_size=14336, num_hidden_layers=2, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=32768, rope_theta=5e5, dtype=torch.bfloat16,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval().bfloat16()
    inputs = {"input_ids": torch.zeros(1, tokens, dtype=torch.int64), "use_cache": False}
    compiled = gaudicc.compile(model.to_empty(device="cpu"), inputs, target=target, passes=passes, device="cpu")
    root = compiled.static_program().root
    call = next(node for node in root.graph.nodes if node.target is call_region)
    notes = [note for record in compiled.trace if record.name == StaggerRows.name for note in record.notes]
    told = re.search(r"rows (in \d parts?[a-z, ]*|left whole)", notes[0]) if notes else None
    return getattr(root, str(call.args[0].target)), told[1] if told else ""


def report() -> Iterator[str]:
    """The page as Markdown, line by line."""
    yield "# A whole layer"
    yield ""
    yield "Made by `python -m gaudicc.profile.layer_table`. Llama-3-8B, one prompt, bf16, causal, node cost 0.1 us, under the"
    yield "vendor's policy. The bound is the least of the three forms' own bounds. Every figure is *modelled*."
    yield ""
    yield "| tokens | chip | form | us | over the bound | exposed TPC us | HBM alone us |"
    yield "|---|---|---|---|---|---|---|"
    for tokens in TOKENS:
        for target in CHIPS:
            runs = {}
            for form, left_out in FORMS:
                passes = [step for step in DEFAULT_PIPELINE if not isinstance(step, left_out)]
                body, told = llama_layer(tokens, target, passes)
                runs[f"{form}, {told}" if told else form] = layer_run(body, load_chip(target))
            bound = min(run.bound for run in runs.values())
            for form, run in runs.items():
                cells = [f"{tokens:,}", target, form, f"{run.seconds * 1e6:,.0f}", f"{run.seconds / bound:.3f}"]
                yield f"| {' | '.join([*cells, f'{run.exposed * 1e6:,.0f}', f'{run.memory * 1e6:,.0f}'])} |"


if __name__ == "__main__":
    for line in report():
        print(line, flush=True)
