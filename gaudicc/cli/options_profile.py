"""Command line: the options of `gaudicc profile`. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """Show what each engine does and when, modelled or from a real trace.

    A model is shown twice, with attention unsplit and with attention by cost; its times are all modelled.

    Attributes:
        model: name, model folder, or .pt2 file; leave it out to look at a trace only.
        target: chip: gaudi2 or gaudi3.
        batch: rows of the example inputs.
        sequence: tokens a row of the example inputs.
        dynamic: sizes that vary, each DIM=MAX or DIM=MIN..MAX; DIM is batch or sequence.
        bucket: sizes to look at, DIM=SIZE[,DIM=SIZE], of those that vary.
        node_us: start of a node in microseconds, instead of the machine model's own value.
        dtype: what if projections multiplied in fp8; passes decide as for the model as it is.
        read: traces of a device: Chrome JSON of torch.profiler, or a CSV of Gaudi's own profiler.
        calibrate: a trace of the model at these sizes: fit the chip's constants to it, and show the model with them.
        runs: with --calibrate: how many runs of the model the trace holds.
        into: with --calibrate: the folder to write them to; GAUDICC_TABLES=FOLDER then makes gaudicc use them.
        trace: file to write in Chrome's trace format, for Perfetto.
        svg: file to draw the timelines to.
        trust: load a .pt2 file, which can run code from it.
        json: print JSON.
    """

    model: Positional[str | None] = None
    target: str = "gaudi3"
    batch: int = 1
    sequence: int = 512
    dynamic: tuple[str, ...] = ()
    bucket: str | None = None
    node_us: float | None = None
    dtype: Literal["fp8"] | None = None
    read: tuple[Path, ...] = ()
    calibrate: Path | None = None
    runs: int = 1
    into: Path = Path("gaudicc_tables")
    trace: Path | None = None
    svg: Path | None = None
    trust: bool = False
    json: bool = False
