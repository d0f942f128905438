"""The pages under docs: their Python runs as it stands, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from project_files import run_python

PAGES = sorted((Path(__file__).resolve().parents[1] / "docs").glob("*.md"))


def pieces(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_there_are_pages():
    assert any(pieces(page) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_runs_as_it_stands(page, tmp_path):
    "All pieces one after another, as somebody who copies them would."
    done = run_python("\n".join(pieces(page)), cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-1500:]
