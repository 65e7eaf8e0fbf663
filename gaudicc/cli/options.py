"""Command line: the options of each command as dataclasses. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """Compile a model and show what each pass did.

    Attributes:
        model: name (sentence-encoder, cuda-style-llm, a transformers model type, ...), model folder, or .pt2 file.
        target: chip: gaudi2 or gaudi3.
        batch: rows of the example inputs.
        sequence: tokens a row of the example inputs.
        dynamic: sizes that vary, each DIM=MAX or DIM=MIN..MAX; DIM is batch or sequence.
        buckets: a strategy (exp, lin, pad, optimal), or sizes to record, each DIM=SIZE[,DIM=SIZE].
        verify: what is checked after each pass.
        branches: an if on a tensor computes both sides (predicate), lets the host decide (host), or whichever is faster (cost).
        diff: also print what one pass changed, e.g. recognize-attention.
        dump: folder for the printed program of every stage.
        report: folder for the HTML report.
        save: bundle to write: a folder, or a file that ends in .zip.
        trust: load a .pt2 file, which can run code from it.
        json: print JSON.
    """

    model: Positional[str]
    target: str = "gaudi3"
    batch: int = 2
    sequence: int = 16
    dynamic: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()
    verify: Literal["structure", "shapes", "ops", "numerics", "poison"] = "ops"
    branches: Literal["cost", "predicate", "host"] = "cost"
    diff: str | None = None
    dump: Path | None = None
    report: Path | None = None
    save: Path | None = None
    trust: bool = False
    json: bool = False


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Run a model or a saved bundle. The sentence encoder ranks the lines of a file against a query.

    Attributes:
        model: bundle, name, model folder, or .pt2 file. All but sentence-encoder run on random inputs.
        query: sentence-encoder: what to rank the lines against.
        file: sentence-encoder: text file, one sentence a line; by default the shipped sentences.
        top: sentence-encoder: how many lines to print; 0 prints all.
        target: chip: gaudi2 or gaudi3.
        batch: rows of a call.
        sequence: tokens a row of random inputs; sentences get the length of the longest.
        compare: also run the model in eager PyTorch and print the largest difference.
        trust: load a .pt2 file, which can run code from it.
        json: print JSON.
    """

    model: Positional[str]
    query: str | None = None
    file: Path | None = None
    top: int = 0
    target: str = "gaudi3"
    batch: int = 2
    sequence: int = 16
    compare: bool = False
    trust: bool = False
    json: bool = False


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """List every op of a model with its status on the target, dtype hazards and dynamic constructs. Compiles nothing.

    Attributes:
        model: name, model folder, or .pt2 file.
        target: chip: gaudi2 or gaudi3.
        batch: rows of the example inputs.
        sequence: tokens a row of the example inputs.
        dynamic: sizes that vary, each DIM=MAX or DIM=MIN..MAX; DIM is batch or sequence.
        trust: load a .pt2 file, which can run code from it.
        json: print JSON.
    """

    model: Positional[str]
    target: str = "gaudi3"
    batch: int = 2
    sequence: int = 16
    dynamic: tuple[str, ...] = ()
    trust: bool = False
    json: bool = False


@dataclass(frozen=True, slots=True)
class PassesOptions:
    """List the passes of the default pipeline in order, with what each requires, ensures and breaks.

    Attributes:
        json: print JSON.
    """

    json: bool = False


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """Show versions, devices that answer, target tables, and whether this checkout is whole; or make or apply a kit.

    Attributes:
        collect: on a machine with a Gaudi: probe its ops, time short runs, run the story, and write one .zip to send back.
        ops: with --collect: the ops to probe, e.g. aten::mm; all if none is given.
        apply: a .zip that --collect made: turn it into tables and constants of the chip.
        into: with --apply: the folder to write; GAUDICC_TABLES=FOLDER then makes gaudicc use it.
        allow_emulated: with --apply: take a kit that was made on the emulator.
        json: print JSON.
    """

    collect: Path | None = None
    ops: tuple[str, ...] = ()
    apply: Path | None = None
    into: Path = Path("gaudicc_tables")
    allow_emulated: bool = False
    json: bool = False


@dataclass(frozen=True, slots=True)
class BenchCompileOptions:
    """Time capture and passes beside torch.export, by number of layers. Prints a Markdown table.

    Attributes:
        layers: decoder layers of the tiny Llama that is compiled.
        rounds: turns; the median is printed.
        json: print JSON.
    """

    layers: tuple[int, ...] = (8, 32, 126)
    rounds: int = 3
    json: bool = False
