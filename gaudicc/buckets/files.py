"""Plans as files: our own JSON, read back for re-planning, and the bucket file that vllm-gaudi reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gaudicc.buckets.bucket import Bucket, BucketSet
from gaudicc.buckets.space import Floats, Rows, Sample, Space
from gaudicc.errors import InputError

FORMAT = "gaudicc-buckets"
VERSION = 1


def plan_as_json(phases: Mapping[str, BucketSet], figures: Mapping[str, object]) -> str:
    """Buckets by phase, and figures to read beside them."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "phases": {
            name: {"dims": list(buckets.dims), "buckets": [list(bucket.sizes) for bucket in buckets]}
            for name, buckets in phases.items()
        },
        "figures": figures,
    }
    return json.dumps(document, indent=1)


def read_plan(path: Path) -> dict[str, BucketSet]:
    """The buckets by phase of a file that `plan_as_json` made.

    Raises:
        InputError: the file is missing, is not such a plan, or is of another version.
    """
    try:
        document = json.loads(path.read_text())
        if (document["format"], document["version"]) != (FORMAT, VERSION):
            raise InputError(f"{path} is {document['format']} version {document['version']}, not {FORMAT} {VERSION}")
        return {
            name: BucketSet(Bucket(tuple(phase["dims"]), tuple(sizes)) for sizes in phase["buckets"])
            for name, phase in document["phases"].items()
        }
    except OSError as error:
        raise InputError(f"cannot read the plan {path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is no bucket plan: {error!r}", hint="make one with --json or --export json=FILE"
        ) from error


def vllm_bucket_file(prefill: Rows | None, decode: Rows | None) -> str:
    """The text of a file for vllm-gaudi's VLLM_BUCKETING_FROM_FILE: one tuple (batch, query, blocks) a line.

    Its reader takes lines whose query is 1 for decode buckets, all others for prefill. It then serves a call with the
    first entry that dominates in sorted order, not the cheapest; `for_first_fit` prepares a plan for that.

    Args:
        prefill: (query, context) or (batch, query, context) [m, 2 or 3].
        decode: (batch, blocks) [m, 2].

    Raises:
        InputError: a prefill bucket has query 1, which the reader would take for decode.
    """
    lines = ["# (batch, query, context blocks); query 1 is decode"]
    if prefill is not None:
        rows = prefill if prefill.shape[1] == 3 else np.insert(prefill, 0, 1, axis=1)
        if np.any(rows[:, 1] == 1):
            raise InputError(
                "vllm-gaudi reads buckets with query 1 as decode buckets; align prefill queries to 2 or more"
            )
        lines += [f"({b}, {q}, {c})" for b, q, c in sorted(rows.tolist())]
    if decode is not None:
        lines += [f"({b}, 1, {blocks})" for b, blocks in sorted(decode.tolist())]
    return "\n".join(lines) + "\n"


def first_fit_cost(space: Space, boxes: Rows, sample: Sample) -> float:
    """Weighted cost when each shape takes the first box, in sorted order, that holds all of it in one call."""
    return float((_first_fit(space, boxes, sample) * sample.weights).sum())


def _first_fit(space: Space, boxes: Rows, sample: Sample) -> Floats:
    ordered = boxes[np.lexsort(boxes.T[::-1])]
    fits: Any = (sample.shapes[:, None] <= ordered[None]).all(axis=2)
    cost = space.cost_of(ordered)[fits.argmax(axis=1)]
    return np.where(fits.any(axis=1), cost, np.inf)


def for_first_fit(space: Space, boxes: Rows, sample: Sample) -> Rows:
    """The plan for a server that takes the first box that fits: the limit added, and boxes in the way removed.

    A box with a small leading dim and a huge last one comes early in sorted order and catches what a cheaper one was
    meant for. The box whose removal saves most is removed until none saves.
    """
    limit = np.array([space.limit])
    boxes = np.unique(np.concatenate([boxes, limit]), axis=0)
    cost = first_fit_cost(space, boxes, sample)
    while len(boxes) > 1:
        options = [np.delete(boxes, i, axis=0) for i in range(len(boxes)) if tuple(boxes[i]) != space.limit]
        costs = [first_fit_cost(space, option, sample) for option in options]
        if not costs or min(costs) >= cost:
            return boxes
        boxes, cost = options[int(np.argmin(costs))], min(costs)
    return boxes
