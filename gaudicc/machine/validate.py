"""Validation: the model beside other people's measurements that no fit has seen, and beside a plain roofline.

    python -m gaudicc.machine.validate > docs/tables/machine_validation.md

Every row is printed with its error; means are taken over validation rows only. All predicted figures are modelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from gaudicc.machine.chip import Chip, load_chip
from gaudicc.machine.fit import STAGES
from gaudicc.machine.runs import Run, predicted_seconds, published_runs, roofline_seconds

# The only model of the tables of which no fit has seen a row in any form but batch-1 decoding's validation half.
UNSEEN = "Mixtral-8x7B-v0.1"
_COLUMNS = (
    "row", "chip", "cards", "model", "batch", "prompt / new", "dtype", "measured ms", "modelled ms", "error",
    "roofline", "use",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """Rows judged together.

    Attributes:
        title: heading.
        target: mean error aimed at.
        rows: which rows.
        transfer: Gaudi 3 is predicted with the constants fitted on Gaudi 2.
    """

    title: str
    target: float | None
    rows: Callable[[Run], bool]
    transfer: bool = False


def _single(run: Run, kind: str) -> bool:
    return run.kind == kind and run.cards == 1


GROUPS = (
    Group("GEMM", 0.05, lambda run: run.kind == "gemm"),
    Group("Batch-1 decode, Gaudi 2", 0.06, lambda run: _single(run, "decode") and run.chip == "gaudi2"),
    Group("Batch-1 decode, Gaudi 3", 0.06, lambda run: _single(run, "decode") and run.chip == "gaudi3"),
    Group("Static batch, one card", 0.08, lambda run: _single(run, "static") and run.model != UNSEEN),
    *(
        Group(
            f"Static batch, a model no fit has seen, Gaudi {chip[-1]}",
            0.12,
            lambda run, chip=chip: run.kind == "static" and run.model == UNSEEN and run.chip == chip,  # type: ignore[misc]
        )
        for chip in ("gaudi2", "gaudi3")
    ),
    Group("First token, one card", None, lambda run: _single(run, "prefill")),
    Group("Tensor parallel", 0.15, lambda run: run.cards > 1 and run.model != UNSEEN),
    Group(
        "Gaudi 2 to Gaudi 3, data sheet only",
        0.15,
        lambda run: run.chip == "gaudi3" and run.cards == 1 and run.kind in ("decode", "static", "gemm"),
        transfer=True,
    ),
    Group("Batched bf16 decode, not judged", None, lambda run: run.kind == "decode_batched"),
)


def transferred() -> Chip:
    """Gaudi 3 from its data sheet, with every fitted constant that of Gaudi 2."""
    chip, donor = load_chip("gaudi3"), load_chip("gaudi2")
    for stage in STAGES:
        for name in stage.names:
            chip = chip.with_value(name, donor.value(name))
    return chip


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row, predicted.

    Attributes:
        run: the published row.
        seconds: modelled time.
        roofline: time of a plain roofline at 0.8 efficiency.
    """

    run: Run
    seconds: float
    roofline: float

    @property
    def error(self) -> float:
        """Relative error; positive where the model is too slow."""
        return self.seconds / self.run.seconds - 1

    @property
    def roofline_error(self) -> float:
        """The roofline's."""
        return self.roofline / self.run.seconds - 1


def outcomes(group: Group) -> tuple[Outcome, ...]:
    """Predicts the rows of a group."""

    def chip(run: Run) -> Chip:
        return transferred() if group.transfer else load_chip(run.chip)

    runs = (run for run in published_runs() if group.rows(run))
    return tuple(Outcome(run, predicted_seconds(run, chip(run)), roofline_seconds(run, chip(run))) for run in runs)


def validation(group: Group) -> tuple[Outcome, ...]:
    """The rows of a group that no fit has seen; with a transferred chip that is all rows of Gaudi 3."""
    return tuple(outcome for outcome in outcomes(group) if group.transfer or not outcome.run.calibrates)


def mean_errors(found: Sequence[Outcome]) -> tuple[float, float]:
    """Mean absolute errors of the model and of the roofline."""
    return mean(abs(outcome.error) for outcome in found), mean(abs(outcome.roofline_error) for outcome in found)


def report() -> str:
    """The table as Markdown."""
    return "\n".join(_report()) + "\n"


def _report() -> Iterator[str]:
    yield "# Machine model: validation"
    yield ""
    yield "Made by `python -m gaudicc.machine.validate`. Measured: published by others, each row's source is in"
    yield "`gaudicc/machine/measurements.csv`. Everything else is *modelled*; nothing here was run on a Gaudi."
    yield ""
    yield "Mean absolute errors over rows that no fit has seen:"
    yield ""
    yield "| group | rows | model | roofline 0.8 | target | worst row |"
    yield "|---|---|---|---|---|---|"
    for group in GROUPS:
        found = validation(group)
        ours, roofline = mean_errors(found)
        worst = max(found, key=lambda outcome: abs(outcome.error))
        target = f"{group.target:.0%}" if group.target else "-"
        worst_text = f"{worst.run.id} {worst.error:+.1%}"
        yield f"| {group.title} | {len(found)} | {ours:.1%} | {roofline:.1%} | {target} | {worst_text} |"
    for group in GROUPS:
        yield ""
        yield f"## {group.title}"
        yield ""
        yield f"| {' | '.join(_COLUMNS)} |"
        yield "|" + "---|" * len(_COLUMNS)
        for outcome in outcomes(group):
            yield _row(outcome, group)


def _row(outcome: Outcome, group: Group) -> str:
    run = outcome.run
    per = 1e3 / max(1, run.new_tokens)
    use = "calibration" if run.calibrates and not group.transfer else "validation"
    return (
        f"| {run.id} | {run.chip} | {run.cards} | {run.model} | {run.batch or ''} | {run.prompt}/{run.new_tokens} "
        f"| {run.dtype} | {run.seconds * per:.4g} | {outcome.seconds * per:.4g} | {outcome.error:+.1%} "
        f"| {outcome.roofline_error:+.1%} | {use} |"
    )


if __name__ == "__main__":
    print(report(), end="")
