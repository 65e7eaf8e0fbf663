"""Each rule of the emulated device has a test that fails when the rule is inverted: here they are inverted, one by one.

A rule is turned round in a copy of the package, by a change of its text; its test must fail there. The numbers are those of
the project's list of rules; 20 to 22, 30, 32, 48, 56 to 58 and 60 are not asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

IN_THIS_PROCESS = True
ROOT = Path(__file__).parents[2]
ASKED_FOR = {*range(1, 20), *range(23, 30), 31, *range(33, 48), *range(49, 56), 59}


class Inversion(NamedTuple):
    """A rule's number, the file of the emulator that holds it, text and what stands there instead, and the test."""

    rule: int
    file: str
    text: str
    instead: str
    test: str


INVERSIONS = [
    Inversion(**each) for each in json.loads(Path(__file__).with_name("inversions.json").read_text(encoding="utf-8"))
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inverted")
    for name in ("gaudicc", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_every_rule_that_is_asked_for_is_inverted_somewhere() -> None:
    assert {each.rule for each in INVERSIONS} == ASKED_FOR
    for each in INVERSIONS:
        text = (ROOT / "gaudicc" / "emulator" / each.file).read_text(encoding="utf-8")
        assert text.count(each.text) == 1, (each.rule, each.file, each.text)
        file, _, name = each.test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / "emulator" / file).read_text(encoding="utf-8"), each.test


@pytest.mark.sweep
@pytest.mark.parametrize("inversion", INVERSIONS, ids=lambda each: f"{each.rule}-{each.test.partition('::')[2]}")
def test_the_test_of_a_rule_fails_when_it_is_inverted(inversion: Inversion, copy: Path) -> None:
    file = copy / "gaudicc" / "emulator" / inversion.file
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(inversion.text, inversion.instead), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        settings = {**os.environ, "PYTHONPATH": str(copy)}
        test = f"tests/emulator/{inversion.test}"
        done = subprocess.run([*command, test], cwd=copy, env=settings, capture_output=True, text=True)
    finally:
        file.write_text(text, encoding="utf-8")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
