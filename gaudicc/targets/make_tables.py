"""Makes the target tables from a CSV of facts, by hand, when the facts change.

Run `python -m gaudicc.targets.make_tables hpu_ops.csv [OUT_DIR]`.

Columns of the CSV, one row an op overload:

| column | content |
|---|---|
| `aten_overload_name` | `aten::add.Tensor`; a default overload is bare |
| `supported` | `yes`, `fallback` (a CPU kernel only), `no`, `unknown` (composite without registration) |
| `dtypes` | `f32|bf16`, or `name=f32|bf16;name=i64` for one list an operand; empty: no evidence |
| `engine` | `MME`, `TPC`, `MME+TPC`, `DMA`, `none` (a view), `unknown` |
| `dynamic` | `yes`: output size or a host read depends on data |
| `source` | files of the vendor's bridge, `;` between them |
| `lazy`, `eager`, `compile` | `native`, `via_composite`, `cpu_fallback`, `no`; for compile the placement |
| `dtype_source` | what speaks of the dtypes |
| `guid` | the kernel's name; not kept |
| `note` | free text; `gaudi2:LIST` gives a chip its own dtypes, `composite_implicit` and the like the kind |
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

RELEASE = "1.19.0"
CHIPS = ("gaudi2", "gaudi3")
COLUMNS = ("op", "lazy", "compile", "kind", "operands", "engine", "dynamic", "when", "evidence", "source", "release")

# How the operands of an op with indices or masks are read; D takes the listed dtypes, for the vendor lists data only.
OPERANDS = {
    **dict.fromkeys(("gather", "index_select", "take", "index_fill", "embedding_renorm"), "D;index;D"),
    **dict.fromkeys(("index_copy", "index_reduce", "scatter", "scatter_add", "scatter_reduce", "put"), "D;index;D"),
    **dict.fromkeys(("index", "_unsafe_index"), "D;index*"),
    **dict.fromkeys(("index_put", "_index_put_impl", "_unsafe_index_put"), "D;index*;D"),
    **dict.fromkeys(("masked_fill", "masked_scatter", "masked_select"), "D;mask;D"),
    "where": "mask;D",
    "nll_loss_forward": "D;index;D",
}

# The kernel on the left is what the op on the right, of which a source gives the dtypes, dispatches to.
SAME_KERNEL = {
    "aten::_to_copy": "aten::to.dtype",
    "aten::_log_softmax": "aten::log_softmax.int",
    "aten::_logcumsumexp": "aten::logcumsumexp",
    "aten::_index_put_impl_": "aten::index_put_",
    "aten::copy": "aten::copy_",
    "aten::embedding_renorm": "aten::embedding_renorm_",
    "aten::exponential": "aten::exponential_",
    "aten::index_add": "aten::index_add_",
    "aten::index_copy": "aten::index_copy_",
    "aten::nll_loss_forward": "aten::nll_loss",
    "aten::put": "aten::put_",
    "aten::upsample_bicubic2d": "aten::upsample_bicubic2d.vec",
    "aten::upsample_bilinear2d": "aten::upsample_bilinear2d.vec",
    "aten::upsample_linear1d": "aten::upsample_linear1d.vec",
    "aten::upsample_nearest1d": "aten::upsample_nearest1d.vec",
    "aten::upsample_nearest2d": "aten::upsample_nearest2d.vec",
    "aten::upsample_nearest3d": "aten::upsample_nearest3d.vec",
}

# Names of the bridge's fallback predicates and of upstream's data dependence -> our conditions.
WHEN = (
    ("only if an index is bool", "bool-index"),
    ("IndexSelectFallbackCheck", "rank-over-five"),
    ("SortStableFallbackCheck", "long-stable-sort"),
    ("EmbeddingFallbackCheck", "training-embedding"),
    ("ModeFallbackCheck", "integer-true-division"),
    ("only when num_classes=-1", "classes-from-data"),
    ("when shapes are symbolic", "symbolic"),
)
COMPILE = {
    "cluster": "cluster",
    "cluster_if_validated": "validated",
    "cluster_if_int64": "validated",
    "cluster_if_static_and_hpu_indices": "validated",
    "plain_index_or_eager_fallback": "validated",
    "decomposed": "decomposed",
    "functionalized_away": "functionalized",
    "eager_fallback": "eager",
    "no": "no",
    "": "no",
}
COMPILE_WHEN = {
    "cluster_if_int64": "not-int64",
    "cluster_if_static_and_hpu_indices": "symbolic",
    "plain_index_or_eager_fallback": "none-index",
}
Facts = dict[str, str]


def main(arguments: list[str]) -> None:
    """Write one table a chip beside this file, or into the folder named second."""
    out = Path(arguments[1]) if len(arguments) > 1 else Path(__file__).parent
    with Path(arguments[0]).open(newline="") as file:
        facts = {row["aten_overload_name"]: row for row in csv.DictReader(file)}
    for chip in CHIPS:
        (out / f"{chip}.json").write_text(table(chip, facts))


def table(chip: str, facts: dict[str, Facts]) -> str:
    """The text of a chip's table: JSON with one line a row; sources are numbered in `sources`."""
    sources = sorted({row["source"] for row in facts.values()})
    numbers = {source: number for number, source in enumerate(sources)}
    rows = [[*_row(chip, facts[op], facts), numbers[facts[op]["source"]], RELEASE] for op in sorted(facts)]
    head = {"format": 1, "chip": chip, "made_by": "gaudicc/targets/make_tables.py", "columns": list(COLUMNS)}
    lines = [json.dumps(head, indent=1)[:-2] + ',\n "sources": [']
    lines.append(",\n".join(f"  {json.dumps(source)}" for source in sources))
    lines.append(' ],\n "rows": [')
    lines.append(",\n".join(f"  {json.dumps(row, separators=(',', ':'))}" for row in rows))
    lines.append(" ]\n}\n")
    return "\n".join(lines)


def _row(chip: str, row: Facts, facts: dict[str, Facts]) -> list[object]:
    operands, evidence = _operands(chip, row, facts)
    when = _when(row)
    return [
        row["aten_overload_name"],
        _lazy(row),
        COMPILE[row["compile"]],
        _kind(row),
        operands,
        _engine(chip, row),
        row["dynamic"] == "yes" and not {"bool-index", "classes-from-data"}.intersection(when),
        "|".join(when),
        evidence,
    ]


def _lazy(row: Facts) -> str:
    if row["lazy"] == "via_composite":
        return "documented" if row["supported"] == "yes" else "composite"
    return {"native": "native", "cpu_fallback": "fallback", "no": "no", "": "no"}[row["lazy"]]


def _kind(row: Facts) -> str:
    for phrase, kind in (
        ("composite_implicit", "implicit"),
        ("composite_explicit", "explicit"),
        ("backend/", "backend"),
    ):
        if phrase in row["note"]:
            return kind
    return "kernel"


def _operands(chip: str, row: Facts, facts: dict[str, Facts]) -> tuple[str, str]:
    """One dtype list an operand, `;` between them, and what speaks of them."""
    op, dtypes, evidence = row["aten_overload_name"], _dtypes(chip, row), row["dtype_source"]
    if not dtypes and op in SAME_KERNEL and SAME_KERNEL[op] in facts:
        dtypes, evidence = _dtypes(chip, facts[SAME_KERNEL[op]]), f"same kernel as {SAME_KERNEL[op]}"
    if "=" in dtypes:
        return ";".join(part.split("=")[1] for part in dtypes.split(";")), evidence
    if not dtypes:
        dtypes = "any" if row["engine"] == "none" and row["supported"] == "yes" else "?"
    name = op.split("::")[1].split(".")[0]
    pattern = OPERANDS.get(name, OPERANDS.get(name.removesuffix("_"), "D"))
    return pattern.replace("D", dtypes), evidence


def _dtypes(chip: str, row: Facts) -> str:
    own = re.search(rf"\b{chip}:(\S+)", row["note"])
    return own.group(1).rstrip(";") if own else row["dtypes"]


def _engine(chip: str, row: Facts) -> str:
    engine = row["engine"]
    if engine == "unknown" and row["supported"] == "yes" and "composite_implicit" not in row["note"]:
        engine = "TPC"  # by exclusion: every gemm and convolution is named in the facts
    # Gaudi3's graph compiler has no DMA engine: Intel_Gaudi3_Software select_mem_op_engine.cpp moves copies to the TPC.
    return "TPC" if engine == "DMA" and chip == "gaudi3" else engine


def _when(row: Facts) -> list[str]:
    names = [name for phrase, name in WHEN if phrase in row["note"]]
    return names + [name for placement, name in COMPILE_WHEN.items() if row["compile"] == placement]


if __name__ == "__main__":
    main(sys.argv[1:])
