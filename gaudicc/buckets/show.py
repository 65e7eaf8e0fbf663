"""A plan for the eye: a heat table of what each bucket serves, and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.table import Table

from gaudicc.buckets.planner import Plan
from gaudicc.buckets.space import Floats, Sample
from gaudicc.errors import InputError

HEAT = ("grey23", "navy_blue", "dark_green", "dark_goldenrod", "dark_orange3", "red3")
"""Background colours from cold to hot, for terminals with 256 colours."""


def bucket_shares(plan: Plan, sample: Sample) -> tuple[Floats, Floats, Floats]:
    """Per bucket: share of calls, share of total time, and waste, in percent; the sample in aligned sizes."""
    prices = plan.space.serve(plan.boxes, sample.shapes)
    owner = prices.argmin(axis=1)
    size = len(plan.boxes)
    calls = np.bincount(owner, sample.weights, size)
    paid = np.bincount(owner, sample.weights * prices.min(axis=1), size)
    real = np.bincount(owner, sample.weights * plan.space.cost_of(sample.shapes), size)
    waste = np.divide(100.0 * (paid - real), real, out=np.zeros(size), where=real > 0)
    return 100.0 * calls / calls.sum(), 100.0 * paid / paid.sum(), waste


def heat_table(plan: Plan, sample: Sample, title: str) -> Table:
    """One row a bucket: its sizes, what it serves, what it wastes; hotter where more time goes to padding."""
    calls, time, waste = bucket_shares(plan, sample)
    lost = time * waste / (100.0 + waste)
    caption = f"waste {plan.waste:.2f} % as planned"
    if plan.bound:
        caption += (
            f"; at most {plan.gap:.2f} % of total cost above the best plan of {len(plan.boxes)} buckets on the grid"
        )
    table = Table(title=title, caption=caption)
    for name in (*plan.space.dims, "calls %", "time %", "padding %", "lost %"):
        table.add_column(name, justify="right")
    for i in np.lexsort(plan.boxes.T[::-1]):
        heat = HEAT[min(len(HEAT) - 1, int(len(HEAT) * lost[i] / max(float(lost.max()), 1e-9)))]
        figures = [f"{calls[i]:.2f}", f"{time[i]:.2f}", f"{waste[i]:.1f}", f"[on {heat}] {lost[i]:.3f} [/]"]
        table.add_row(*map(str, plan.boxes[i]), *figures)
    return table


def plot(plans: dict[str, tuple[Plan, Sample]], path: Path) -> None:
    """Draws the shapes seen and the buckets' corners over the last two dims of each phase.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # optional: only for pictures
    except ImportError as error:
        raise InputError("--plot needs matplotlib, which is not installed", hint="pip install matplotlib") from error
    figure = Figure(figsize=(7 * len(plans), 5), layout="constrained")
    for axes, (name, (plan, sample)) in zip(
        figure.subplots(1, len(plans), squeeze=False)[0], plans.items(), strict=True
    ):
        x, y = sample.shapes[:, -1], sample.shapes[:, -2] if sample.shapes.shape[1] > 1 else sample.weights
        axes.scatter(x, y, s=2 + 60 * sample.weights / sample.weights.max(), alpha=0.4, label="shapes seen")
        if len(plan.space.dims) > 1:
            axes.plot(plan.boxes[:, -1], plan.boxes[:, -2], "rs", markersize=4, fillstyle="none", label="buckets")
        axes.set(title=f"{name}: {len(plan.boxes)} buckets, waste {plan.waste:.1f} %", xlabel=plan.space.dims[-1])
        axes.set_ylabel(plan.space.dims[-2] if len(plan.space.dims) > 1 else "weight")
        axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write the picture {path}: {error}") from error
