"""Makes a kit on a machine with a Gaudi: probe, timed runs and story, one after the other, each in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gaudicc.errors import DeviceError
from gaudicc.handover.kit import Kit, Origin, Probed, write_kit
from gaudicc.handover.probe import probe
from gaudicc.machine.timings import Timing
from gaudicc.runtime.hpu_probe import Sizes, timings
from gaudicc.runtime.hpu_software import Software, emulated, start

EMULATED = Sizes((1536,), 1, (1 << 20,), (4, 1 << 24), 10)
"""Sizes of the timed runs where a CPU computes and time is modelled."""


def collect(
    path: Path,
    doctor: Callable[[], Any],
    say: Callable[[str], None],
    ops: Sequence[str] = (),
) -> Kit:
    """Collect and write a kit.

    Args:
        path: the zip.
        doctor: gives what `gaudicc doctor` knows; asked last, for it takes the card.
        say: told of each step.
        ops: ops to probe; all that have a sample if none is given.

    Raises:
        DeviceError: no Gaudi answers.
        InputError: the file cannot be written.
    """
    say("probing ops: minutes, for each one compiles")
    with tempfile.TemporaryDirectory(prefix="gaudicc_kit_") as folder:  # before this process takes the card
        probed: list[Probed] = list(probe(Path(folder), ops))
    say("the story")
    story = _story(say)
    say("timing short runs")
    software = start()
    sizes = EMULATED if software.emulated else Sizes()
    timed = tuple(Timing(*row) for row in timings(software, sizes))
    kit = Kit(_origin(software), tuple(probed), timed, story, doctor())
    write_kit(path, kit)
    return kit


def _origin(software: Software) -> Origin:
    return Origin(
        software.chip,
        software.release,
        software.mode.value,
        software.emulated,
        torch.__version__,
        metadata.version("gaudicc"),
    )


def _story(say: Callable[[str], None]) -> Any:
    """What `gaudicc bench story` prints, or why it does not."""
    size = ("--requests", "4", "--longest", "16", "--layers", "1") if emulated() else ()
    command = [sys.executable, "-m", "gaudicc", "bench", "story", "--json", *size]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if line.startswith("error")), "no message")
        say(f"the story did not run: {said}")
        return {"raised": said}
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise DeviceError(f"the story printed no JSON: {error}", hint="run `gaudicc bench story --json`") from error
