"""The documentation as a site: built strictly, whole, and readable by machines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripts.cli_reference import page as cli_page

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


def test_every_page_is_there_twice(site: Path) -> None:
    """As HTML, and as Markdown for machines; all of them are listed in llms.txt."""
    files = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    pages = [path.parent if path.name == "index.md" else path.with_suffix("") for path in files]
    assert len(pages) > 20
    listed = re.findall(r"\]\(https?://[^/]+/([^)]*)\)", (site / "llms.txt").read_text())
    for page in pages:
        assert (site / page / "index.html").is_file(), page
        assert len((site / page / "index.md").read_text()) > 300, page
        assert f"{page}/index.md" in listed


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]*)"', (site / "index.html").read_text())
    assert [url for url in fetched if not url.startswith("http://127.0.0.1:8000/")] == []


def test_the_reference_has_what_is_public(site: Path) -> None:
    import tidings
    import tidings.gateway

    told = (site / "reference" / "python" / "index.md").read_text()
    public = [*tidings.__all__, *tidings.gateway.__all__]
    missing = [name for name in public if f"## {name}" not in told and name != "__version__"]
    assert missing == []


def test_the_command_line_s_page_is_fresh() -> None:
    assert (ROOT / "docs" / "reference" / "cli.md").read_text() == cli_page(), "run: make docs-tables"
