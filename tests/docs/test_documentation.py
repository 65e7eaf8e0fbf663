"""What the README and the pages of docs/ show is run: Python blocks, links, and the commands of shell blocks."""

import re
from pathlib import Path

import pytest

from gaudicc.cli.app import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
COMMAND = re.compile(r"\bgaudicc ((?:[a-z]+ )?[a-z]+)\b")


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def name(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / f"{page.stem}_blocks.py"  # a real file, so that source lines can be found
    script.write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    names = {"__name__": f"blocks_of_{page.stem}"}
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_shell_blocks_exist(page: Path) -> None:
    for block in (*blocks(page, "sh"), *blocks(page, "shell")):
        for words in COMMAND.findall(block):
            assert words in COMMANDS or words.split()[0] in COMMANDS, words


def test_readme_opens_with_two_commands_that_the_makefile_has() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^make (\w+)", blocks(ROOT / "README.md", "sh")[0], re.MULTILINE)
    assert commands == ["demo", "test"]
    assert all(f"\n{command}: .venv/installed" in makefile for command in commands)
