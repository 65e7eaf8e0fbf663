import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gaudicc.errors import TargetError
from gaudicc.targets import Engine, Target, load_target
from gaudicc.targets.make_tables import table
from gaudicc.targets.table import read_overlay, read_table
from gaudicc.targets.target import SHIPPED_OVERLAYS, TABLES

SAMPLE = Path(__file__).parent / "ops_sample.csv"


def facts() -> dict[str, dict[str, str]]:
    with SAMPLE.open(newline="") as file:
        return {row["aten_overload_name"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("chip", ["gaudi2", "gaudi3"])
def test_sample_regenerates_to_the_committed_rows(chip: str, tmp_path: Path) -> None:
    file = tmp_path / f"{chip}.json"
    file.write_text(table(chip, facts()))
    name, rows = read_table(file)
    assert name == chip
    assert len(rows) == len(facts())
    committed = load_target(chip).rows
    assert {op: committed[op] for op in rows} == rows


def test_command_writes_a_table_for_each_chip(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gaudicc.targets.make_tables", str(SAMPLE), str(tmp_path)]
    subprocess.run(command, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gaudi2.json", "gaudi3.json"]
    assert (tmp_path / "gaudi3.json").read_text() == table("gaudi3", facts())


def test_every_row_has_source_and_release(target: Target) -> None:
    assert len(target.rows) > 3000
    assert all(row.source and row.release for row in target.rows.values())


def test_gaudi3_has_no_dma_and_gaudi2_has() -> None:
    engines = {chip: {row.engine for row in load_target(chip).rows.values()} for chip in ("gaudi2", "gaudi3")}
    assert Engine.DMA in engines["gaudi2"]
    assert Engine.DMA not in engines["gaudi3"]


def test_chips_differ_only_where_a_source_says_so() -> None:
    two, three = load_target("gaudi2").rows, load_target("gaudi3").rows
    differing = {op for op in two if two[op] != three[op]}
    assert {"aten::constant_pad_nd", "aten::clone", "aten::sum"} <= differing
    assert all(two[op].engine is Engine.DMA or two[op].operands != three[op].operands for op in differing)


def test_tables_are_small() -> None:
    assert all(path.stat().st_size < 500_000 for path in TABLES.glob("*.json"))


def test_shipped_overlays_are_sourced() -> None:
    rows = [row for file in SHIPPED_OVERLAYS for row in read_overlay(TABLES / file)]
    assert rows
    assert all(row.source and row.release and row.reason for row in rows)


def test_loading_a_target_does_not_import_torch() -> None:
    code = "import sys; from gaudicc.targets import load_target; load_target('gaudi3'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(TargetError) as caught:
        load_target("gaudi9")
    assert "gaudi2, gaudi3" in str(caught.value)


MALFORMED = {
    "engine": ("engine", "XPU", "unknown engine 'XPU'"),
    "operands": ("operands", "f33", "unknown dtype 'f33'"),
    "when": ("when", "rain", "unknown when 'rain'"),
    "source": ("source", 99999, "source must be a number"),
    "op": ("op", "mm", "op must look like"),
    "dynamic": ("dynamic", "maybe", "dynamic must be true or false"),
    "release": ("release", "", "release must not be empty"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_row_names_file_and_row(case: str, tmp_path: Path) -> None:
    column, value, message = MALFORMED[case]
    data = json.loads(table("gaudi3", facts()))
    data["rows"][3][data["columns"].index(column)] = value
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(data))
    with pytest.raises(TargetError) as caught:
        read_table(file)
    assert "mine.json" in caught.value.what
    assert "row 3" in caught.value.what
    assert message in caught.value.what


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 2}', '{"format": 1}', '{"format": 1, "rows": [7]}'])
def test_malformed_overlay_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(TargetError, match=r"mine\.json"):
        load_target("gaudi3", file)


def test_missing_overlay_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot be read"):
        load_target("gaudi3", tmp_path / "absent.json")
