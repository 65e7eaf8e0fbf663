"""`python -m gaudicc.bench.legal`: what becomes of PyTorch's own operator samples on gaudi3.

Every sample of `op_db` in a dtype is captured as a function of one op, legalised, run by the rule interpreter and compared
with eager. An entry counts by its worst sample.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from gaudicc.bench.legal_samples import DTYPES, ENTRIES, TOLERANCES, Compiled, Outcome, Status, judge, name_of

USAGE = Path(__file__).parents[2] / "docs" / "tables" / "zoo_ops.json"  # written by gaudicc.bench.legal_models


@dataclass(frozen=True, slots=True)
class Row:
    """What became of an entry.

    Attributes:
        name: the entry with its variant.
        variant: the variant's own name, or nothing.
        samples: how many were judged.
        worst: the first of the worst outcomes.
        counts: samples by status.
    """

    name: str
    variant: str
    samples: int
    worst: Outcome
    counts: dict[Status, int]

    @property
    def op(self) -> str:
        """The ATen op that the entry is about, as far as its name says."""
        name = self.name.removesuffix(f".{self.variant}") if self.variant else self.name
        return name.removeprefix("nn.functional.").replace(".", "_")

    def text(self) -> str:
        """As one line, for a file that a run can be resumed from."""
        return json.dumps([self.name, self.variant, self.samples, self.worst.status, self.worst.detail, self.counts])

    @classmethod
    def of(cls, line: str) -> Row:
        """The row of such a line."""
        name, variant, samples, status, detail, counts = json.loads(line)
        worst = Outcome(Status(status), detail)
        return cls(name, variant, samples, worst, {Status(int(key)): count for key, count in counts.items()})


def judge_entry(index: int, dtype: torch.dtype = torch.float32, limit: int | None = None) -> Row:
    """Judges the samples of an entry.

    Args:
        index: into `ENTRIES`.
        dtype: of the samples; the entry must have it.
        limit: at most about so many samples, evenly spread; None for all.
    """
    warnings.simplefilter("ignore")
    entry = ENTRIES[index]
    samples = list(entry.sample_inputs("cpu", dtype))
    step = max(1, len(samples) // limit) if limit else 1
    known: Compiled = {}
    outcomes = [judge(entry, sample, known) for sample in samples[::step]]
    worst = max(outcomes, key=lambda outcome: outcome.status)
    counts = dict(Counter(outcome.status for outcome in outcomes))
    return Row(name_of(entry), entry.variant_test_name, len(outcomes), worst, counts)


def table(rows: Sequence[Row], dtype: str, limit: int | None, used: Mapping[str, int]) -> Iterator[str]:
    """The lines of the table, what falls short first, and of that what most models use.

    Args:
        rows: of all entries.
        dtype: of the samples.
        limit: of samples of an entry.
        used: ATen op -> how many transformers models call it.
    """
    counts = Counter(row.worst.status for row in rows)
    short = dtype == "float32"
    options = ("" if short else f" --dtype {dtype}") + (f" --samples {limit}" if limit else "")
    file = "op_db_legal.md" if short else f"op_db_legal_{dtype}.md"
    yield f"<!-- python -m gaudicc.bench.legal{options} > docs/tables/{file} -->"
    yield ""
    chosen = f"at most about {limit} of each entry, evenly spread" if limit else "all"
    judged = sum(row.samples for row in rows)
    close = max(TOLERANCES[DTYPES[dtype]], TOLERANCES[torch.float32])
    yield (
        f"PyTorch {torch.__version__}'s operator samples, {dtype} ({chosen}: {judged}), gaudi3, lazy mode. Each is captured as a "
        f"function of one op, legalised, run by the rule interpreter and compared with eager ({close:g}; of drawn and "
        "uninitialised values only the types; complex results as pairs of reals; results whose length only data knows are cut "
        "by the host). An entry counts by its worst sample. Models: how many of the transformers models that are judged in "
        "model_legal.md call the op of that name."
    )
    yield ""
    yield "| status | entries | share |"
    yield "|---|---|---|"
    for status in Status:
        yield f"| {status.name.lower()} | {counts[status]} | {counts[status] / len(rows):.1%} |"
    yield f"| legal (the first three) | {(legal := _legal(counts))} | {legal / len(rows):.1%} |"
    yield ""
    yield "| entry | worst | models | samples by status | rules, presumed ops or the reason |"
    yield "|---|---|---|---|---|"
    for row in sorted(rows, key=lambda row: (-row.worst.status, -used.get(row.op, 0), row.name)):
        spread = ", ".join(f"{status.name.lower()} {count}" for status, count in sorted(row.counts.items()))
        detail = row.worst.detail.splitlines()[0].replace("|", "/") if row.worst.detail else ""
        yield f"| {row.name} | {row.worst.status.name.lower()} | {used.get(row.op, 0)} | {spread} | {detail} |"


def _legal(counts: Mapping[Status, int]) -> int:
    return counts[Status.NATIVE] + counts[Status.DECOMPOSED] + counts[Status.RULE]


def _said(rows: Iterable[Row], kept: Path | None) -> Iterator[Row]:
    """The rows; each is told on stderr as it comes, for the whole takes long, and kept."""
    for row in rows:
        print(f"{row.name}: {row.worst.status.name.lower()} {row.worst.detail}", file=sys.stderr)
        if kept:
            with kept.open("a") as file:
                print(row.text(), file=file)
        yield row


def main() -> int:
    """Judges all entries and prints the table.

    Returns:
        1 if a sample was wrong or met a fault of ours, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=None, help="at most about so many samples of each entry")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the samples")
    parser.add_argument("--entries", nargs="+", default=(), help="names of entries; all by default")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--rows", type=Path, help="a file that rows are kept in: those that it has are not made again")
    options = parser.parse_args()
    dtype = DTYPES[options.dtype]
    lines = options.rows.read_text().splitlines() if options.rows and options.rows.exists() else []
    known = [Row.of(line) for line in lines]
    done = {row.name for row in known}
    chosen = [i for i, each in enumerate(ENTRIES) if dtype in each.dtypes]
    chosen = [i for i in chosen if not options.entries or ENTRIES[i].name in options.entries]
    chosen = [i for i in chosen if name_of(ENTRIES[i]) not in done]
    judged = partial(judge_entry, dtype=dtype, limit=options.samples)
    with multiprocessing.get_context("spawn").Pool(options.workers, torch.set_num_threads, (1,)) as pool:
        rows = [*known, *_said(pool.imap(judged, chosen), options.rows)]
    used = json.loads(USAGE.read_text()) if USAGE.exists() else {}
    print("\n".join(table(rows, options.dtype, options.samples, used)))
    return int(any(row.worst.status >= Status.FAULT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
