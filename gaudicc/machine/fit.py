"""Calibration: fits the few constants that nobody has published, from the calibration rows of `runs` alone.

    python -m gaudicc.machine.fit            # prints what it finds
    python -m gaudicc.machine.fit --write    # and writes it into the chips' data files

Each constant is fitted to the rows that show it: the sustained clock to the best GEMM; hand-off and host step to
 batch-1 decoding; the efficiency of reading a KV cache to the static batches of Llama-2-7B on Gaudi 2; the
network to Llama-2-70B on two to four Gaudi 2. The last two are taken over for Gaudi 3, whose rows validate them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gaudicc.errors import InputError
from gaudicc.machine.chip import CHIPS, Chip, load_chip
from gaudicc.machine.runs import Run, predicted_seconds, published_runs
from gaudicc.own_tables import own_table
from gaudicc.whole_files import replace_file

# Constants that are a fraction of something.
_FRACTIONS = ("mme.sustained", "memory.cache_efficiency", "memory.hbm_efficiency", "network.efficiency")


@dataclass(frozen=True, slots=True)
class Stage:
    """Constants fitted together.

    Attributes:
        start: the constants, each with the value that the search starts from.
        rows: which calibration rows show them.
        chip: the chip whose rows are used; None for each chip's own.
    """

    start: Mapping[str, float]
    rows: Callable[[Run], bool]
    chip: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the constants."""
        return tuple(self.start)


STAGES = (
    Stage({"mme.sustained": 0.9}, lambda run: run.kind == "gemm"),
    Stage(
        {"host.handoff_seconds": 3e-6, "host.step_seconds": 2e-3},
        lambda run: run.kind == "decode" and run.cards == 1,
    ),
    Stage({"memory.cache_efficiency": 0.9}, lambda run: run.kind == "static" and run.cards == 1, "gaudi2"),
    Stage(
        {"network.efficiency": 0.9, "network.latency": 3e-6},
        lambda run: run.cards > 1 and run.kind != "prefill",
        "gaudi2",
    ),
)


def errors(runs: Sequence[Run], chip: Chip) -> list[float]:
    """Relative errors of the predicted times; positive where the model is too slow."""
    return [predicted_seconds(run, chip) / run.seconds - 1 for run in runs]


def mean_error(runs: Sequence[Run], chip: Chip) -> float:
    """Mean absolute relative error."""
    found = errors(runs, chip)
    return sum(abs(error) for error in found) / len(found) if found else 0.0


def fit(chip: Chip, runs: Sequence[Run]) -> Chip:
    """Fits the constants of one chip, stage by stage.

    Args:
        chip: the machine; its fitted constants are not looked at.
        runs: rows to use; validation rows among them are not looked at.

    Returns:
        The chip with the constants of all stages that have rows replaced.
    """
    for stage in STAGES:
        for name, value in stage.start.items():
            chip = chip.with_value(name, value)
    calibration = [run for run in runs if run.calibrates and run.chip == chip.name]
    for stage in STAGES:
        rows = [run for run in calibration if stage.rows(run)]
        if rows and stage.chip in (None, chip.name):
            chip = _search(chip, stage.names, lambda tried, rows=rows: mean_error(rows, tried))  # type: ignore[misc]
    return chip


@dataclass(frozen=True, slots=True)
class Observation:
    """One time measured on a device, by whoever has one.

    Attributes:
        name: what was measured.
        constants: names of the constants that it shows.
        seconds: the time.
        predict: what a chip's model says of it.
    """

    name: str
    constants: tuple[str, ...]
    seconds: float
    predict: Callable[[Chip], float]


def fit_observations(chip: Chip, observations: Sequence[Observation]) -> Chip:
    """Fits what the observations show: in their order, those with the same constants together, from the chip's own values.

    Returns:
        The chip with these constants replaced.
    """
    for names in dict.fromkeys(each.constants for each in observations):
        shown = [each for each in observations if each.constants == names]
        chip = _search(chip, names, lambda tried, shown=shown: observed_error(shown, tried))  # type: ignore[misc]
    return chip


def observed_error(observations: Sequence[Observation], chip: Chip) -> float:
    """Mean absolute relative error."""
    return sum(abs(each.predict(chip) / each.seconds - 1) for each in observations) / len(observations)


def fit_all() -> dict[str, Chip]:
    """Fits every chip; what is fitted on one chip only is taken over by the others."""
    fitted = {name: fit(load_chip(name), published_runs()) for name in CHIPS}
    for stage in STAGES:
        for name in stage.names if stage.chip else ():
            value = fitted[stage.chip or ""].value(name)
            fitted = {key: chip.with_value(name, value) for key, chip in fitted.items()}
    return fitted


def _search(chip: Chip, names: tuple[str, ...], error_of: Callable[[Chip], float]) -> Chip:
    """Pattern search on an error: multiply or divide one constant at a time by a shrinking factor."""
    best, step = error_of(chip), 0.2
    while step > 0.002:
        improved = False
        for name in names:
            for factor in (1 + step, 1 / (1 + step)):
                value = chip.value(name) * factor
                tried = chip.with_value(name, min(value, 1.0) if name in _FRACTIONS else value)
                error = error_of(tried)
                if error < best - 1e-9:
                    best, chip, improved = error, tried, True
        if not improved:
            step /= 2
    return chip


def chip_json(chip: Chip, constants: Iterable[str], source: str) -> str:
    """The chip's data file, the user's own if there is one, with some constants as this chip has them, marked as fitted."""
    file = own_table(f"{chip.name}.chip.json") or Path(__file__).with_name(f"{chip.name}.json")
    data = json.loads(file.read_text())
    for name in constants:
        entry = data
        for part in name.split("."):
            entry = entry[part]
        entry.update(value=float(f"{chip.value(name):.4g}"), evidence="fitted", source=source)
    return json.dumps(data, indent=1) + "\n"


def save_chip(folder: Path, chip: Chip, constants: Iterable[str], source: str) -> Path:
    """Writes `chip_json` into a folder for `GAUDICC_TABLES`, which is made if it is not there.

    Raises:
        InputError: the file cannot be written.
    """
    path = folder / f"{chip.name}.chip.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = chip_json(chip, constants, source)
        replace_file(path, lambda stream: stream.write(text.encode()))
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error}", hint="give another folder with --into") from error
    return path


def write(chip: Chip) -> None:
    """Writes the fitted constants into the chip's data file, to four digits."""
    path = Path(__file__).with_name(f"{chip.name}.json")
    text = path.read_text()
    for stage in STAGES:
        for name in stage.names:
            section, attribute = name.split(".")
            start = text.index(f'"{section}": {{')
            pattern = re.compile(rf'("{attribute}": {{"value": )[^,]+')
            value = json.dumps(float(f"{chip.value(name):.4g}"))
            text = text[:start] + pattern.sub(rf"\g<1>{value}", text[start:], count=1)
    path.write_text(text)


def main() -> None:
    """Fits, prints, and with `--write` keeps the constants."""
    for chip in fit_all().values():
        for stage in STAGES:
            rows = [run for run in published_runs() if run.calibrates and run.chip == chip.name and stage.rows(run)]
            values = ", ".join(f"{name} = {chip.value(name):.4g}" for name in stage.names)
            seen = stage.chip in (None, chip.name)
            print(f"{chip.name}: {values}  ({len(rows) if seen else 0} rows, error {mean_error(rows, chip):.1%})")
        if "--write" in sys.argv[1:]:
            write(chip)


if __name__ == "__main__":
    main()
