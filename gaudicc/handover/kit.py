"""The file that goes back: a zip of four plain files and a manifest. Data only; nothing of it is ever run.

`manifest.json` names format, version, chip and software, and the SHA-256 of each file; `probe.csv` and `timings.csv` hold what
is applied, `story.json` and `doctor.json` what is read by people. Every value is checked when a kit is read.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from gaudicc.errors import InputError, Where
from gaudicc.machine import CHIPS
from gaudicc.machine.timings import KINDS, Timing
from gaudicc.runtime.hpu_probe import OUTCOMES
from gaudicc.targets import Mode
from gaudicc.targets.dtypes import DEVICE
from gaudicc.whole_files import replace_file

FORMAT, VERSION = "gaudicc-kit", 1
MANIFEST, PROBE, TIMINGS, STORY, DOCTOR = "manifest.json", "probe.csv", "timings.csv", "story.json", "doctor.json"
LARGEST = 1 << 24
"""Bytes that a member may have."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What became of one op on the device.

    Attributes:
        op: as the tables spell it.
        dtypes: codes of its operands, `|` between them.
        outcome: one of `gaudicc.runtime.hpu_probe.OUTCOMES`.
        error: largest relative difference to the CPU.
        detail: what was raised.
    """

    op: str
    dtypes: str
    outcome: str
    error: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a kit was made.

    Attributes:
        chip: `gaudi2` or `gaudi3`.
        release: of Gaudi's software.
        mode: `lazy` or `compile`.
        emulated: on gaudicc's emulator: it says nothing of a Gaudi.
        torch: its version.
        gaudicc: its version.
    """

    chip: str
    release: str
    mode: str
    emulated: bool
    torch: str
    gaudicc: str


@dataclass(frozen=True, slots=True)
class Kit:
    """What was collected.

    Attributes:
        origin: where.
        probed: the ops.
        timings: the timed runs.
        story: what `gaudicc bench story` printed; None if it did not run.
        doctor: what `gaudicc doctor` printed.
    """

    origin: Origin
    probed: tuple[Probed, ...]
    timings: tuple[Timing, ...]
    story: Any = None
    doctor: Any = field(default_factory=dict)


def write_kit(path: Path, kit: Kit) -> None:
    """Write a kit: the whole file, or none.

    Raises:
        InputError: the file cannot be written.
    """
    members = {
        PROBE: _csv(Probed, kit.probed),
        TIMINGS: _csv(Timing, kit.timings),
        STORY: json.dumps(kit.story, indent=1).encode(),
        DOCTOR: json.dumps(kit.doctor, indent=1).encode(),
    }
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    manifest = {"format": FORMAT, "version": VERSION, **asdict(kit.origin), "files": hashes}

    def write(stream: BinaryIO) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in {MANIFEST: json.dumps(manifest, indent=1).encode(), **members}.items():
                archive.writestr(name, data)

    try:
        replace_file(path, write)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}", hint="make room, or give another path") from error


def read_kit(path: Path) -> Kit:
    """Read a kit, and check all of it.

    Raises:
        InputError: it is no kit, damaged, doctored, or of another version.
    """
    members = _members(path)
    manifest = _json(path, MANIFEST, members.pop(MANIFEST))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        _refuse(path, "its manifest is not that of a kit")
    if manifest.get("version") != VERSION:
        _refuse(path, f"it has version {manifest.get('version')!r:.40}, this gaudicc reads {VERSION}")
    if manifest.get("files") != {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}:
        _refuse(path, "its files are not those that its manifest names")
    return Kit(
        _origin(path, manifest),
        tuple(_probed(path, row) for row in _rows(path, PROBE, members[PROBE], Probed)),
        tuple(_timing(path, row) for row in _rows(path, TIMINGS, members[TIMINGS], Timing)),
        _json(path, STORY, members[STORY]),
        _json(path, DOCTOR, members[DOCTOR]),
    )


def _members(path: Path) -> dict[str, bytes]:
    """The files by name: exactly ours, each once, none too large when unpacked."""
    wanted = [DOCTOR, MANIFEST, PROBE, STORY, TIMINGS]
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(info.filename for info in archive.infolist())
            if names != wanted:
                _refuse(path, f"it holds {', '.join(names[:8])!r:.200}, not {', '.join(wanted)}")
            found = {}
            for info in archive.infolist():
                if info.file_size > LARGEST:
                    _refuse(path, f"{info.filename} claims {info.file_size} bytes, more than {LARGEST}")
                with archive.open(info) as stream:
                    found[info.filename] = stream.read(LARGEST)
            return found
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        _refuse(path, f"it cannot be read as a zip: {error}")


def _origin(path: Path, manifest: dict[str, Any]) -> Origin:
    names = [each.name for each in fields(Origin)]
    if set(manifest) != {"format", "version", "files", *names}:
        _refuse(path, "its manifest has other fields")
    values = {name: manifest[name] for name in names}
    texts = [value for name, value in values.items() if name != "emulated"]
    if not all(isinstance(text, str) and 0 < len(text) <= 80 and text.isprintable() for text in texts):
        _refuse(path, "its manifest holds something that is no short text")
    if values["chip"] not in CHIPS or values["mode"] not in {mode.value for mode in Mode}:
        _refuse(path, f"it is of the chip {values['chip']!r} and the mode {values['mode']!r}")
    if not isinstance(values["emulated"], bool):
        _refuse(path, "it does not say whether it was made on an emulated device")
    return Origin(**values)


def _probed(path: Path, row: dict[str, str]) -> Probed:
    if row["outcome"] not in OUTCOMES:
        _refuse(path, f"{PROBE} has the outcome {row['outcome']!r:.60}")
    if not set(row["dtypes"].split("|")) <= DEVICE or "::" not in row["op"]:
        _refuse(path, f"{PROBE} speaks of {row['op']!r:.60} on {row['dtypes']!r:.60}")
    error = _number(path, PROBE, row["error"], least=0.0, endless=True)
    return Probed(row["op"], row["dtypes"], row["outcome"], error, row["detail"])


def _timing(path: Path, row: dict[str, str]) -> Timing:
    if row["kind"] not in KINDS:
        _refuse(path, f"{TIMINGS} has the kind {row['kind']!r:.60}")
    size, count = (_number(path, TIMINGS, row[name], least=0.0) for name in ("size", "count"))
    seconds = _number(path, TIMINGS, row["seconds"], least=1e-9)
    if size != int(size) or count != int(count) or count < 1 or seconds > 1e5:
        _refuse(path, f"{TIMINGS} has a run of size {size:g}, {count:g} times, {seconds:g} s")
    return Timing(row["kind"], int(size), int(count), seconds)


def _number(path: Path, member: str, text: str, *, least: float, endless: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        _refuse(path, f"{member} holds {text!r:.60}, which is no number")
    if math.isnan(value) or value < least or (math.isinf(value) and not endless):
        _refuse(path, f"{member} holds the number {value}")
    return value


def _csv(kind: type[Probed] | type[Timing], rows: Sequence[Probed] | Sequence[Timing]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([each.name for each in fields(kind)])
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue().encode()


def _rows(path: Path, member: str, data: bytes, kind: type[Probed] | type[Timing]) -> list[dict[str, str]]:
    names = [each.name for each in fields(kind)]
    try:
        found = list(csv.reader(io.StringIO(data.decode())))
    except (UnicodeDecodeError, csv.Error) as error:
        _refuse(path, f"{member} is no CSV: {error}")
    if not found or found[0] != names or any(len(row) != len(names) for row in found):
        _refuse(path, f"{member} must have the columns {', '.join(names)}")
    return [dict(zip(names, row, strict=True)) for row in found[1:]]


def _json(path: Path, member: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"{member} is no JSON: {error}")


def _refuse(path: Path, why: str) -> NoReturn:
    raise InputError(
        f"{path} is no kit to be trusted: {why}",
        where=Where(source=str(path)),
        hint="collect it again with `gaudicc doctor --collect`, with the same gaudicc as here",
    )
