"""The kit: collected on the emulated device with constants that are not the shipped ones, applied, and used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gaudicc.errors import InputError
from gaudicc.handover.apply import apply, overlay_rows
from gaudicc.handover.kit import MANIFEST, PROBE, STORY, TIMINGS, Kit, Origin, Probed, read_kit, write_kit
from gaudicc.machine import load_chip
from gaudicc.machine.fit import chip_json
from gaudicc.machine.timings import KINDS, Timing
from gaudicc.targets import Mode, Support, load_target

ORIGIN = Origin("gaudi3", "1.24.0", "lazy", False, "2.10.0", "0.1.0")
ELSEWHERE = {
    "mme.sustained": 0.5,
    "memory.hbm_efficiency": 0.6,
    "host.handoff_seconds": 4e-6,
    "host.replay_seconds": 2e-4,
    "host.transfer_latency": 5e-5,
    "host.pcie_bandwidth": 1e10,
    "host.compile_seconds_per_node": 5e-3,
}
"""What the device has on which the kit is collected."""
COLLECTING = """
import sys
from pathlib import Path
from gaudicc.handover import collect, probe
collect._story = lambda say: {"rows": []}
collect.collect(Path(sys.argv[1]), lambda: {"python": "3"}, print, sys.argv[2:])
"""
USING = """
import habana_frameworks.torch, torch
from gaudicc.emulator import account
from gaudicc.emulator.ledger import Kind
from gaudicc.emulator.emulation import current
torch.ones(4).to("hpu")
torch.histc(torch.ones(4).to("hpu"))
print(current().clock.chip.host.transfer_latency, account().count(Kind.FALLBACK))
"""


def run(folder: Path, text: str, *arguments: str, tables: Path | None = None) -> str:
    script = folder / "script.py"
    script.write_text(text)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"GAUDICC_TABLES": str(tables)} if tables else {})}
    command = [
        sys.executable,
        "-m",
        "gaudicc.emulator",
        "--target",
        "gaudi3",
        "--mode",
        "lazy",
        str(script),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collected on a device with the constants `ELSEWHERE`, which knows `histc` and not `exp`."""
    folder = tmp_path_factory.mktemp("elsewhere")
    chip = load_chip("gaudi3")
    for name, value in ELSEWHERE.items():
        chip = chip.with_value(name, value)
    (folder / "gaudi3.chip.json").write_text(chip_json(chip, ELSEWHERE, "of the test"))
    common = {"reason": "of the test", "source": "of the test", "release": "2"}
    rows = [{"op": "aten::histc", "support": "evidenced", **common}, {"op": "aten::exp", "support": "no", **common}]
    (folder / "gaudi3.overlay.json").write_text(json.dumps({"format": 1, "rows": rows}))
    run(folder, COLLECTING, str(folder / "kit.zip"), "aten::mm", "aten::neg", "aten::histc", "aten::exp", tables=folder)
    return folder / "kit.zip"


def test_what_was_collected_is_applied_and_used(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="emulator"):
        apply(kit, tmp_path / "tables")
    assert not (tmp_path / "tables").exists()
    found = apply(kit, tmp_path / "tables", allow_emulated=True)
    assert found.probed > found.agreed > 0
    assert found.error[1] < 0.02 < found.error[0]
    before = load_target("gaudi3"), load_chip("gaudi3")
    monkeypatch.setenv("GAUDICC_TABLES", str(tmp_path / "tables"))
    target, chip = load_target("gaudi3"), load_chip("gaudi3")
    for name, value in ELSEWHERE.items():
        assert chip.value(name) == pytest.approx(value, rel=0.03), name
        assert before[1].value(name) != pytest.approx(value, rel=0.03), name
        assert "emulated gaudi3: no evidence" in chip.sources[name].text
    assert target.lookup("aten::exp", ["float32"]).support is Support.NO
    assert before[0].lookup("aten::exp", ["float32"]).legal
    assert target.lookup("aten::mm", ["bfloat16"] * 2) == before[0].lookup("aten::mm", ["bfloat16"] * 2)
    assert target.lookup("aten::exp", ["float32"], Mode.COMPILE).legal, "it was not asked in this mode"
    assert run(tmp_path, USING, tables=tmp_path / "tables").split() == [f"{chip.host.transfer_latency}", "1"]


def test_a_kit_survives_its_own_file(tmp_path: Path) -> None:
    made = Kit(
        ORIGIN,
        (Probed("aten::neg", "f32", "ran", 1e-7), Probed("aten::mm", "i32", "raised", 0.0, 'no, "never",\n1')),
        (Timing("send", 4, 20, 1e-3),),
        {"rows": []},
        {"python": "3.10"},
    )
    write_kit(tmp_path / "kit.zip", made)
    assert read_kit(tmp_path / "kit.zip") == made
    assert [path.name for path in tmp_path.iterdir()] == ["kit.zip"]


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, files: dict[str, bytes]) -> None:
    """Write members, with a manifest that names them as they are."""
    import hashlib

    manifest = json.loads(files[MANIFEST])
    manifest["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != MANIFEST}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**files, MANIFEST: json.dumps(manifest).encode()}.items():
            archive.writestr(name, data)


def edited(name: str, old: bytes, new: bytes) -> Callable[[dict[str, bytes]], None]:
    def edit(files: dict[str, bytes]) -> None:
        assert old in files[name]
        files[name] = files[name].replace(old, new)

    return edit


DOCTORED: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "another version": (edited(MANIFEST, b'"version": 1', b'"version": 2'), "version 2"),
    "another format": (edited(MANIFEST, b"gaudicc-kit", b"kit"), "manifest"),
    "another chip": (edited(MANIFEST, b'"chip": "gaudi3"', b'"chip": "gaudi1"'), "gaudi1"),
    "not said whether emulated": (edited(MANIFEST, b'"emulated": false', b'"emulated": 0'), "emulated"),
    "a field more": (edited(MANIFEST, b'"chip"', b'"more": 1, "chip"'), "other fields"),
    "a file more": (lambda files: files.update({"run.py": b""}), "run.py"),
    "a file less": (lambda files: files.pop(STORY), "it holds"),
    "an unknown outcome": (edited(PROBE, b",ran,", b",fine,"), "fine"),
    "no dtype": (edited(PROBE, b",f32,", b",c64,"), "c64"),
    "a column more": (edited(PROBE, b"op,dtypes", b"op,more,dtypes"), "columns"),
    "no number": (edited(TIMINGS, b"0.001", b"fast"), "fast"),
    "not a number": (edited(TIMINGS, b"0.001", b"nan"), "nan"),
    "no time": (edited(TIMINGS, b"0.001", b"0.0"), "0.0"),
    "endless": (edited(TIMINGS, b"0.001", b"inf"), "inf"),
    "an unknown run": (edited(TIMINGS, b"send", b"sent"), "sent"),
    "half a run": (edited(TIMINGS, b",20,", b",0.5,"), "0.5 times"),
    "no JSON": (edited(STORY, b"{", b"("), "JSON"),
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    kit = Kit(ORIGIN, (Probed("aten::neg", "f32", "ran"),), (Timing("send", 4, 20, 1e-3),), {"rows": []})
    write_kit(tmp_path / "kit.zip", kit)
    return tmp_path / "kit.zip"


@pytest.mark.parametrize("how", DOCTORED)
def test_a_doctored_kit_is_refused(small: Path, how: str) -> None:
    edit, said = DOCTORED[how]
    files = members(small)
    edit(files)
    rewrite(small, files)
    with pytest.raises(InputError, match="no kit to be trusted") as error:
        read_kit(small)
    assert said in str(error.value)


def test_a_changed_file_is_refused(small: Path) -> None:
    files = members(small)
    files[TIMINGS] = files[TIMINGS].replace(b"0.001", b"0.002")
    with zipfile.ZipFile(small, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(InputError, match="not those that its manifest names"):
        read_kit(small)


def test_what_unpacks_to_more_than_it_may_is_refused(small: Path) -> None:
    files = members(small)
    with zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, STORY: b" " * (1 << 25)}.items():
            archive.writestr(name, data)
    assert small.stat().st_size < 1 << 17
    with pytest.raises(InputError, match="more than"):
        read_kit(small)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip" * 99])
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "kit.zip").write_bytes(content)
    with pytest.raises(InputError, match="no kit"):
        read_kit(tmp_path / "kit.zip")


def test_a_kit_that_cannot_be_written_leaves_the_old_one(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = small.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(InputError, match="No space left"):
        write_kit(small, Kit(ORIGIN, (), ()))
    assert small.read_bytes() == before
    assert [path.name for path in small.parent.iterdir()] == [small.name]


def test_tables_that_cannot_be_written_leave_the_old_ones(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = tmp_path / "tables"
    apply(small, tables)
    before = {path.name: path.read_bytes() for path in tables.iterdir()}
    write_kit(small, Kit(ORIGIN, (Probed("aten::mm", "f32", "crashed"),), (Timing("send", 4, 20, 1e-3),)))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left"):
            apply(small, tables)
    assert {path.name: path.read_bytes() for path in tables.iterdir()} == before
    apply(small, tables)
    assert {path.name: path.read_bytes() for path in tables.iterdir()} != before


@pytest.mark.parametrize(
    ("probed", "support"),
    [
        (Probed("aten::mm", "f32", "ran"), None),
        (Probed("aten::mm", "f32", "fell back"), "no"),
        (Probed("aten::mm", "f32", "raised", 0.0, "oh"), "reported_bad"),
        (Probed("aten::mm", "f32", "crashed"), "reported_bad"),
        (Probed("aten::mm", "f32", "wrong", 0.5), "reported_bad"),
        (Probed("aten::histc", "f32", "ran"), "evidenced"),
        (Probed("aten::histc", "f32", "fell back"), None),
        (Probed("aten::histc", "f32|i64", "ran"), None),
        (Probed("aten::of_tomorrow", "f32", "ran"), None),
        (Probed("aten::nonzero", "f32", "ran"), None),
    ],
    ids=str,
)
def test_rows_say_only_what_the_tables_do_not(probed: Probed, support: str | None) -> None:
    rows = overlay_rows(load_target("gaudi3"), ORIGIN, [probed])
    assert [row["support"] for row in rows] == ([] if support is None else [support])
    if rows:
        assert (rows[0]["modes"], rows[0]["dtypes"], rows[0]["release"]) == ("lazy", "f32", "1.24.0")
        assert "on a gaudi3" in str(rows[0]["source"])


def test_conditions_outweigh_one_sample() -> None:
    target = load_target("gaudi3")
    named = next(row for row in target.rows.values() if row.when and not target.lookup(row.op, ["int8"]).legal)
    assert not overlay_rows(target, ORIGIN, [Probed(named.op, "i8", "ran")])


def test_a_second_kit_adds_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = tmp_path / "tables"
    lazy = Kit(ORIGIN, (Probed("aten::histc", "f32", "ran"), Probed("aten::mm", "f32", "crashed")), ())
    fast = Timing("send", 4, 20, 1e-3)
    compiled = replace(lazy, origin=replace(ORIGIN, mode="compile"), timings=(fast,))
    mended = Kit(ORIGIN, (Probed("aten::mm", "f32", "ran"),), (Timing("eager op", 0, 10, 1e-3),))
    monkeypatch.setenv("GAUDICC_TABLES", str(tables))
    for number, (kit, rows) in enumerate(((lazy, 2), (compiled, 4), (mended, 3))):
        write_kit(tmp_path / f"{number}.zip", kit)
        assert apply(tmp_path / f"{number}.zip", tables).rows == rows
    target = load_target("gaudi3")
    assert target.lookup("aten::mm", ["float32"] * 2).legal
    assert target.lookup("aten::mm", ["float32"] * 2, Mode.COMPILE).support is Support.REPORTED_BAD
    assert target.lookup("aten::histc", ["float32"]).legal
    chip = json.loads((tables / "gaudi3.chip.json").read_text())["host"]
    assert "doctor" in chip["transfer_latency"]["source"]
    assert "doctor" in chip["eager_op_seconds"]["source"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_run_shows_its_constants(kind: str) -> None:
    chip = load_chip("gaudi2")
    constants, predict = KINDS[kind]
    timing = Timing(kind, 4096 if kind == "gemm" else 1 << 26 if kind in ("stream", "send") else 2, 8, 1.0)
    for name in constants:
        moved = predict(timing, chip.with_value(name, chip.value(name) * 0.9))
        if name == "host.transfer_latency":
            moved = predict(replace(timing, size=4), chip.with_value(name, chip.value(name) * 0.9))
            timing = replace(timing, size=4)
        assert moved != predict(timing, chip), name


def test_a_folder_without_tables_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_chip("gaudi3")
    monkeypatch.setenv("GAUDICC_TABLES", str(tmp_path))
    assert load_chip("gaudi3") is before
    shutil.copy(Path(load_target.__code__.co_filename).with_name("supplement.json"), tmp_path / "gaudi2.overlay.json")
    assert load_target("gaudi3").overlays == load_target("gaudi3", None).overlays
