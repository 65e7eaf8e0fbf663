"""The report: one file, complete, escaped, with nothing fetched from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import gaudicc
from gaudicc.report import write_report
from gaudicc.trace import CompileTrace

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [str(given["id"])] if "id" in given else []
        self.targets += [str(given["href"])] if "href" in given else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def compiled() -> gaudicc.CompiledModel:
    return gaudicc.compile(lambda x: torch.relu(x[:, ::2]) + 0, (torch.ones(2, 8),))


def test_every_pass_guard_and_plan_is_on_the_page(compiled: gaudicc.CompiledModel, tmp_path: Path) -> None:
    path = compiled.report(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "index.html"
    page = path.read_text()
    for record in compiled.trace:
        assert record.name in page
    assert ".shape[1] == 8" in page
    assert "certificate for gaudi3" in page
    assert "plan for" in page
    assert re.search(r'<span class="removed">-.*aten.slice', page)
    assert re.search(r'<span class="added">\+.*aten.select', page)


def test_the_page_stands_alone_and_its_links_lead_somewhere(compiled: gaudicc.CompiledModel, tmp_path: Path) -> None:
    page = compiled.report(tmp_path).read_text()
    assert "<script" not in page
    assert "http" not in page
    assert "@import" not in page
    assert "url(" not in page
    parsed = Balanced()
    parsed.feed(page)
    assert not parsed.open
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert {target.removeprefix("#") for target in parsed.targets} <= set(parsed.ids)
    assert "prefers-color-scheme: dark" in page
    assert "max-width: 48rem" in page


def test_text_is_escaped_and_an_empty_trace_is_explained(tmp_path: Path) -> None:
    page = write_report(tmp_path, CompileTrace(), guards="a < b", certificate="<script>", plans=["p & q"]).read_text()
    assert "a &lt; b" in page
    assert "&lt;script&gt;" in page
    assert "p &amp; q" in page
    assert "loaded from a bundle" in page
