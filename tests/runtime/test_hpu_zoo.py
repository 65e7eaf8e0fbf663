"""Causal language models of transformers, tiny, on the emulated device in both modes; a table of results.

python -m tests.runtime.test_hpu_zoo --rows FILE > docs/tables/hpu_zoo.md    # goes on where FILE ends
python -m tests.runtime.test_hpu_zoo --rows FILE llama mamba                 # some rows
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

TABLE = Path(__file__).parents[2] / "docs" / "tables" / "hpu_zoo.md"
CONTEXT = multiprocessing.get_context("forkserver")
MODES = {"lazy": "1", "compile": "0"}
TIMEOUT = 300
HOLDS = "equal"
HEAD = """<!-- python -m tests.runtime.test_hpu_zoo --rows FILE > docs/tables/hpu_zoo.md -->

transformers {transformers}, torch {torch}, tiny random weights, float32, gaudi3 emulated. A model is captured and compiled on the
host, saved, loaded for `hpu`, warmed up and called three times with two inputs. *equal*: the results are those of `device="cpu"`
(2e-5 of the largest magnitude), with no fallback, host read, split or overflow, and nothing compiled, captured or recorded once
warm. *host*: refused before a device comes into it.
"""
TOLERANCE = (
    2e-5  # CPMAnt's eager float32 is 2.1e-5 of the largest magnitude off its float64; the families' tests hold 1e-5
)
NOT_ON_THE_HOST = "host: "
"""Begins the result of a model that is refused before any device comes into it."""


def in_child(work: Callable[..., str], *arguments: object) -> str:
    """What a function says in a process of its own, or how it failed, in one line."""
    CONTEXT.set_forkserver_preload(["torch", "gaudicc.compiler", "transformers", "gaudicc.emulator.warm"])
    receive, send = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_answer, args=(send, work, *arguments))
    process.start()
    send.close()
    try:
        said: str = receive.recv() if receive.poll(TIMEOUT) else f"no answer within {TIMEOUT} s"
    except EOFError:
        process.join()
        said = f"the process died with exit code {process.exitcode}"
    process.kill() if said.startswith("no answer") else process.join()
    return said


def _answer(send: Connection, work: Callable[..., str], *arguments: object) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        send.send(work(*arguments))
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = re.sub(r"\s+", " ", str(error)) or f"{Path(where.filename).name}:{where.lineno}: {where.line}"
        send.send(f"{type(error).__name__}: {text[:200]}")


def prepared(model_type: str, folder: str) -> str:
    """Compiles for the CPU, saves a bundle, and calls and their results beside it."""
    from gaudicc.models import transformers_models as models
    from tests.runtime.test_hpu_on_models import saved

    model = models.build(model_type, task="causal")
    inputs = models.example_inputs(model)
    other = inputs | {key: inputs[key].flip(0) for key in ("input_ids", "attention_mask") if key in inputs}
    with torch.no_grad():
        saved(Path(folder), model, [inputs, other, inputs])
    return HOLDS


def on_device(folder: str, mode: str) -> str:
    """Loads the bundle for `hpu`, warms up, and calls: every value, count and record is checked as in the tests."""
    os.environ.update(PT_HPU_LAZY_MODE=MODES[mode], GAUDICC_EMULATOR_TARGET="gaudi3")
    import gaudicc.emulator

    gaudicc.emulator.install()
    __import__("habana_frameworks.torch")
    from tests.runtime.test_hpu_on_models import run_saved

    run_saved(Path(folder), mode, {torch.float32: TOLERANCE})
    return HOLDS


def row_of(model_type: str) -> dict[str, str]:
    """One row: what the host says of a model, and each mode."""
    with tempfile.TemporaryDirectory() as folder:
        host = in_child(prepared, model_type, folder)
        if host != HOLDS:
            return {"model": model_type, **dict.fromkeys(MODES, NOT_ON_THE_HOST + host)}
        return {"model": model_type, **{mode: in_child(on_device, folder, mode) for mode in MODES}}


def table(rows: list[dict[str, str]], known: int) -> str:
    """The rows as Markdown."""
    import transformers

    held = {mode: sum(row[mode] == HOLDS for row in rows) for mode in MODES}
    captured = sum(not row["lazy"].startswith(NOT_ON_THE_HOST) for row in rows)
    head = HEAD.format(transformers=transformers.__version__, torch=torch.__version__)
    counts = f"equal in lazy mode {held['lazy']}, in compile mode {held['compile']}"
    lines = [
        f"{head}\n{len(rows)} of {known} causal model types, {captured} of which the host compiles; {counts}.\n",
        "| model type | lazy | compile |",
        "|---|---|---|",
    ]
    lines += [f"| {row['model']} | {_cell(row['lazy'])} | {_cell(row['compile'])} |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "/")


def main() -> None:
    """Makes the rows that a file lacks, and prints all of it as a table."""
    from gaudicc.models.transformers_models import model_types

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", required=True, type=Path, help="a JSON object a line; kept and added to")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop before a row once this much time is gone"
    )
    parser.add_argument("models", nargs="*", help="model types; all if none, evenly spread first")
    options = parser.parse_args()
    known = sorted(model_types("causal"))
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()] if options.rows.exists() else []
    done = {row["model"] for row in rows}
    started = time.monotonic()
    for model_type in options.models or [name for first in range(4) for name in known[first::4]]:
        if model_type in done or time.monotonic() - started > options.seconds:
            continue
        rows.append(row_of(model_type))
        with options.rows.open("a") as into:
            into.write(json.dumps(rows[-1]) + "\n")
    print(table(sorted(rows, key=lambda row: row["model"]), len(known)))


@pytest.mark.sweep
@pytest.mark.parametrize("model_type", ["qwen2", "phi", "opt"])
def test_a_row_holds(model_type: str) -> None:
    pytest.importorskip("gaudicc.models.transformers_models", reason="needs gaudicc[models]")
    assert set(row_of(model_type).values()) == {model_type, HOLDS}


def test_every_model_that_the_host_compiles_runs_on_the_device() -> None:
    rows = [
        line.split(" | ")
        for line in TABLE.read_text().splitlines()
        if line.startswith("| ") and "model type" not in line
    ]
    wrong = [row[0] for row in rows for cell in row[1:] if not cell.startswith((HOLDS, NOT_ON_THE_HOST))]
    assert len(rows) >= 170
    assert not wrong


if __name__ == "__main__":
    main()
