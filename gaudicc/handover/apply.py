"""Makes tables of a kit: an overlay of what the device does otherwise than the tables say, and constants of the chip.

An op that ran is evidence for the dtypes that ran, unless the table knows a condition that one sample cannot show. One that
fell back, raised, gave other values or ended its process is not legal there, whatever the table says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gaudicc.errors import InputError
from gaudicc.handover.kit import Kit, Origin, Probed, read_kit
from gaudicc.machine import load_chip
from gaudicc.machine.fit import fit_observations, observed_error, save_chip
from gaudicc.machine.timings import in_order
from gaudicc.runtime.hpu_probe import FELL_BACK, RAN
from gaudicc.targets import Mode, Support, Target, load_target
from gaudicc.targets.table import read_overlay
from gaudicc.whole_files import replace_file


@dataclass(frozen=True, slots=True)
class Applied:
    """What a kit changed.

    Attributes:
        origin: where it was made.
        probed: ops with dtypes that it speaks of.
        agreed: how many of them the tables had right.
        rows: rows of the overlay.
        constants: constant -> (before, after).
        error: mean error of the timed runs, before and after.
        files: what was written.
    """

    origin: Origin
    probed: int
    agreed: int
    rows: int
    constants: dict[str, tuple[float, float]]
    error: tuple[float, float]
    files: tuple[Path, ...]


def apply(path: Path, folder: Path, *, allow_emulated: bool = False) -> Applied:
    """Read a kit and write `CHIP.overlay.json` and `CHIP.chip.json` into a folder for `GAUDICC_TABLES`.

    Args:
        path: the kit.
        folder: where to; it is made if it is not there.
        allow_emulated: take a kit that was made on the emulator, which says nothing of a Gaudi.

    Raises:
        InputError: the kit is refused, or a file cannot be written.
    """
    kit = read_kit(path)
    origin = kit.origin
    if origin.emulated and not allow_emulated:
        raise InputError(
            f"{path} was collected on the emulator: its answers are gaudicc's own, not a Gaudi's",
            hint="collect on a Gaudi; to try the way through, add --allow-emulated",
        )
    target, chip = load_target(origin.chip, shipped=True), load_chip(origin.chip)
    observations = in_order(list(kit.timings))
    names = list(dict.fromkeys(name for each in observations for name in each.constants))
    fitted = fit_observations(chip, observations)
    files = (
        _save_rows(folder, kit, overlay_rows(target, origin, kit.probed)),
        save_chip(folder, fitted, names, _source(origin)),
    )
    agreed = sum(_agrees(target, origin, each) for each in kit.probed)
    errors = tuple(observed_error(observations, each) if observations else 0.0 for each in (chip, fitted))
    constants = {name: (chip.value(name), fitted.value(name)) for name in names}
    return Applied(
        origin, len(kit.probed), agreed, len(read_overlay(files[0])), constants, (errors[0], errors[1]), files
    )


def overlay_rows(target: Target, origin: Origin, probed: Iterable[Probed]) -> list[dict[str, object]]:
    """The rows where the device does otherwise than the tables say.

    Calls whose operands differ in dtype are passed over: a row of the overlay would speak of other mixtures too.
    """
    found: list[dict[str, object]] = []
    for each in probed:
        row = target.rows.get(each.op)
        if row is None or "|" in each.dtypes or _agrees(target, origin, each):
            continue
        if each.outcome == RAN and (row.when or row.dynamic):
            continue
        found.append(
            {
                "op": each.op,
                "support": _support(each).value,
                "dtypes": each.dtypes,
                "modes": origin.mode,
                "engine": row.engine.value,
                "reason": _reason(each),
                "source": _source(origin),
                "release": origin.release,
            }
        )
    return found


def _support(probed: Probed) -> Support:
    if probed.outcome == RAN:
        return Support.EVIDENCED
    return Support.NO if probed.outcome == FELL_BACK else Support.REPORTED_BAD


def _agrees(target: Target, origin: Origin, probed: Probed) -> bool:
    """Whether the tables say of this call what the device did."""
    row = target.rows.get(probed.op)
    operands = len(row.operands) if row is not None and "|" not in probed.dtypes else 1
    verdict = target.lookup(probed.op, probed.dtypes.split("|") * operands, Mode(origin.mode))
    return verdict.legal == (probed.outcome == RAN)


def _reason(probed: Probed) -> str:
    if probed.outcome == RAN:
        return "ran on the device and gave the CPU's values"
    more = probed.detail or (f"off by {probed.error:.2g}" if probed.error else "")
    return f"{probed.outcome} on the device" + (f": {more}" if more else "")


def _source(origin: Origin) -> str:
    where = f"an emulated {origin.chip}: no evidence" if origin.emulated else f"a {origin.chip}"
    return f"gaudicc doctor --collect on {where}, release {origin.release}, torch {origin.torch}"


def _save_rows(folder: Path, kit: Kit, rows: list[dict[str, object]]) -> Path:
    """Writes the overlay; rows of the folder on what this kit does not speak of stay."""
    path = folder / f"{kit.origin.chip}.overlay.json"
    spoken = {(each.op, each.dtypes, kit.origin.mode) for each in kit.probed}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            read_overlay(path)  # refuses what is none
            before = json.loads(path.read_text())["rows"]
            rows = [row for row in before if (row["op"], row.get("dtypes"), row.get("modes")) not in spoken] + rows
        text = json.dumps({"format": 1, "rows": rows}, indent=1) + "\n"
        replace_file(path, lambda stream: stream.write(text.encode()))
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error}", hint="give another folder with --into") from error
    return path
