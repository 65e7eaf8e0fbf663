"""A plan for the eye: a heat table of what each bucket serves."""

from __future__ import annotations

import numpy as np
from rich.table import Table

from gaudicc.buckets.planner import Plan
from gaudicc.buckets.space import Floats, Sample

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
    caption = (
        f"padding costs {lost.sum() / (100.0 - lost.sum()) * 100.0:.2f} % on this traffic; planned cost at most "
        f"{plan.gap:.2f} % above the best plan of so many buckets on the level grid"
    )
    table = Table(title=title, caption=caption)
    for name in (*plan.space.dims, "calls %", "time %", "padding %", "lost %"):
        table.add_column(name, justify="right")
    for i in np.lexsort(plan.boxes.T[::-1]):
        heat = HEAT[min(len(HEAT) - 1, int(len(HEAT) * lost[i] / max(float(lost.max()), 1e-9)))]
        figures = [f"{calls[i]:.2f}", f"{time[i]:.2f}", f"{waste[i]:.1f}", f"[on {heat}] {lost[i]:.3f} [/]"]
        table.add_row(*map(str, plan.boxes[i]), *figures)
    return table
