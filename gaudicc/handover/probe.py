"""Runs the samples in a process of its own, for an op may take its process with it.

`python -m gaudicc.handover.probe FILE SKIP [OP ...]` adds one line of JSON to FILE before each sample and one after it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from gaudicc.errors import DeviceError
from gaudicc.handover.kit import Probed
from gaudicc.handover.samples import samples
from gaudicc.runtime.hpu_probe import CRASHED, try_call
from gaudicc.runtime.hpu_software import start
from gaudicc.targets import load_target

MOST_CRASHES = 100


def probe(folder: Path, ops: Sequence[str] = ()) -> Iterator[Probed]:
    """Probe the device of this machine; a sample that ends its process counts as crashed, and the next ones go on.

    Args:
        folder: where scratch files may lie.
        ops: ops to probe; all that have a sample if none is given.

    Raises:
        DeviceError: too many samples crash, or a process ends without trying one.
    """
    seen = 0
    for attempt in range(MOST_CRASHES):
        file = folder / f"probe_{attempt}.jsonl"
        command = [sys.executable, "-m", "gaudicc.handover.probe", str(file), str(seen), *ops]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        for begun, ended in zip(lines[::2], [*lines[1::2], None], strict=False):
            how = f"the process ended with status {done.returncode}"
            yield Probed(*(ended.values() if ended else (*begun.values(), CRASHED, 0.0, how)))
            seen += 1
        if done.returncode == 0:
            return
        if not lines:
            said = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DeviceError(f"the probe cannot start: {said}", hint="run `gaudicc doctor`")
    raise DeviceError(f"{MOST_CRASHES} samples ended their process", hint="look at the card with hl-smi")


def main(file: str, skip: str, *ops: str) -> None:
    """Probe from the sample with number `skip` on."""
    software = start()
    with open(file, "x", encoding="utf-8") as stream:
        for sample in islice(samples(load_target(software.chip), ops), int(skip), None):
            name = {"op": sample.op, "dtypes": sample.dtypes}
            print(json.dumps(name), file=stream, flush=True)
            found = try_call(sample.call, sample.expected, compare=sample.deterministic, mode=software.mode)
            row = Probed(sample.op, sample.dtypes, found.what, found.error, found.detail)
            print(json.dumps(asdict(row)), file=stream, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
