"""Hooks of mkdocs: pages of the site that are files of the repository's root."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them, with links that fit their places there."""
    moved = {source: page for page, source in PAGES.items()}
    for page, source in PAGES.items():
        text = re.sub(r"\]\(docs/", "](", (ROOT / source).read_text())
        text = re.sub(r"\]\((\w+\.md)", lambda link: f"]({moved.get(link[1], link[1])}", text)
        files.append(File.generated(config, page, content=text))
    return files
