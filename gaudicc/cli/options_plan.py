"""Command line: the options of `gaudicc plan`. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Show the plan of every bucket: what is recorded, what the host does. With --memory: does it fit?

    Attributes:
        model: name, model folder, or .pt2 file; with --generate also the dimensions of a large one, e.g. Llama-3.1-70B.
        memory: show bytes of weights, state and recorded graphs instead, and whether they fit.
        cards: with --memory: cards that share weights and state evenly.
        target: chip: gaudi2 or gaudi3.
        batch: rows of the example inputs.
        sequence: tokens a row of the example inputs.
        dynamic: sizes that vary, each DIM=MAX or DIM=MIN..MAX; DIM is batch or sequence.
        buckets: a strategy (exp, lin, pad, optimal), or sizes to record, each DIM=SIZE[,DIM=SIZE].
        generate: plan the prefill and decode steps of compile_lm with their key/value cache, and not one call of the model.
        max_batch: with --generate: requests in flight at once.
        max_context: with --generate: most tokens of one request.
        trust: load a .pt2 file, which can run code from it.
        json: print JSON.
    """

    model: Positional[str]
    memory: bool = False
    cards: int = 1
    target: str = "gaudi3"
    batch: int = 2
    sequence: int = 16
    dynamic: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()
    generate: bool = False
    max_batch: int = 4
    max_context: int = 512
    trust: bool = False
    json: bool = False
