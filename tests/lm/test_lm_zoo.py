"""`compile_lm` on every causal language model of transformers, beside its own forward pass; a table of results.

python tests/lm/test_lm_zoo.py > docs/tables/lm_zoo.md
python tests/lm/test_lm_zoo.py --rows rows.jsonl > docs/tables/lm_zoo.md   # goes on where it stopped
python tests/lm/test_lm_zoo.py qwen3 gpt_oss   # some rows
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import gaudicc
from gaudicc.errors import GaudiccError, InputError, ModelRaisedError
from gaudicc.lm import Generation
from gaudicc.models.transformers_models import build, model_types

LENGTHS, NEW = (5, 2, 4), 8
TOLERANCE = 1e-4


class Row(NamedTuple):
    """One model type.

    Attributes:
        status: `equal`, `other` (a wrong answer), `refused`, `eager` (transformers' own forward pass fails) or
            `not built` (no tiny config).
        note: why.
    """

    status: str
    note: str = ""


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and mask, `[rows, columns]`."""
    generator = torch.Generator().manual_seed(0)
    ids, mask = torch.zeros(2, len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        ids[row, -length:] = torch.randint(5, 90, (length,), generator=generator)
        mask[row, -length:] = 1
    return ids, mask


def compare(model: Any) -> Row:
    """Compiles a model, generates twice, and holds each row against the model's own logits of its tokens, alone."""
    ids, mask = prompts()
    lm = gaudicc.compile_lm(model, max_batch=4, max_context=32)
    wanted: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    ours = lm.generate(ids, mask, output_logits=True, **wanted)
    assert isinstance(ours, Generation)
    largest = 0.0
    for row, marks in enumerate(mask):
        tokens = ours.sequences[row, len(marks) - int(marks.sum()) :]
        with torch.no_grad():
            own = model(input_ids=tokens[None, :-1], use_cache=False).logits[0, -NEW:].float()
        mine = torch.stack([step[row] for step in ours.logits])
        largest = max(largest, float((mine - own).abs().max()))
        if not torch.equal(own.argmax(-1), tokens[-NEW:]):
            return Row("other", f"other tokens; logits differ by {largest:.1e}")
    if largest > TOLERANCE:
        return Row("other", f"logits differ by {largest:.1e}")
    records = lm.stats.records
    again = lm.generate(ids, mask, max_new_tokens=NEW, do_sample=False)
    if not torch.equal(torch.as_tensor(again), ours.sequences) or lm.stats.records != records:
        return Row("other", "the second time is not as the first")
    return Row("equal")


def row_of(name: str) -> Row:
    """What becomes of one model type."""
    try:
        model: Any = build(name, task="causal")
    except InputError as error:
        return Row("not built", _short(error))
    model.generation_config.eos_token_id = None
    for field in ("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"):
        setattr(model.generation_config, field, None)  # of tasks with another vocabulary than a tiny one's
    for part in model.modules():
        if hasattr(
            part, "index_topk"
        ):  # of keys with equal scores, which are chosen is open; test_indexers.py has it choose
            part.index_topk = max(LENGTHS) + NEW
    try:
        return compare(model)
    except ModelRaisedError as error:
        return Row("eager", _short(error))
    except GaudiccError as error:
        return Row("refused", _short(error))


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:160].replace("|", "/")


@pytest.mark.sweep
@pytest.mark.parametrize("name", model_types("causal"))
def test_nothing_is_silently_wrong(name: str) -> None:
    assert row_of(name).status != "other"


def main() -> None:
    """Prints the table; rows as they come on stderr, and into a file that the next run reads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="model types; by default all")
    parser.add_argument("--rows", type=Path, help="keep rows here")
    parser.add_argument("--only-known", action="store_true", help="print the table of the rows that are kept")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kept = options.rows.read_text().splitlines() if options.rows and options.rows.exists() else []
    rows = {name: Row(*row) for name, *row in map(json.loads, kept)}
    wanted = options.names or model_types("causal")
    for name in () if options.only_known else [name for name in wanted if name not in rows]:
        rows[name] = row_of(name)
        print(name, *rows[name], file=sys.stderr, flush=True)
        if options.rows:
            with options.rows.open("a") as file:
                print(json.dumps([name, *rows[name]]), file=file)
    rows = {name: rows[name] for name in wanted if name in rows}
    counts = Counter(row.status for row in rows.values())
    print("# compile_lm on every causal language model of transformers\n")
    print("`python tests/lm/test_lm_zoo.py > docs/tables/lm_zoo.md`\n")
    print(
        f"Tiny configs with random weights, float32; prompts of {LENGTHS} tokens in one batch, {NEW} greedy tokens each. "
        "`equal`: tokens are the likeliest ones of the model's own forward pass on each row alone, logits within "
        f"{TOLERANCE:g} at each step, nothing recorded the second time. `eager`: transformers' own forward pass fails. "
        "`other` would be a wrong answer.\n"
    )
    print(
        ", ".join(f"{count} {status}" for status, count in counts.most_common())
        + f" of {len(rows)}; {len(wanted) - len(rows)} were not run.\n"
    )
    print("| model | | why |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row.status} | {row.note} |")


if __name__ == "__main__":
    main()
