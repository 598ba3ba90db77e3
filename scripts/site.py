"""Hooks of mkdocs: what is in the site though it is not in docs/: files of the root as pages, examples, the proto."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PROTO = "src/tidings/transports/grpc/tidings_v1.proto"
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them, with links that fit their places there."""
    moved = {source: page for page, source in PAGES.items()}
    for page, source in PAGES.items():
        text = re.sub(r"\]\(docs/", "](", (ROOT / source).read_text())
        text = re.sub(r"\]\((\w+\.md)", lambda link: f"]({moved.get(link[1], link[1])}", text)
        files.append(File.generated(config, page, content=text))
    for path in sorted((ROOT / "examples").rglob("*.py")):
        files.append(File.generated(config, str(path.relative_to(ROOT)), content=path.read_text()))
    files.append(File.generated(config, "transports/tidings_v1.proto", content=(ROOT / PROTO).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to examples and to the proto, which lie beside docs/ in the repository and in it here."""
    markdown = markdown.replace(f"](../../{PROTO})", "](tidings_v1.proto)")
    return re.sub(r"\]\(((?:\.\./)+)\.\./examples/", r"](\1examples/", markdown)
