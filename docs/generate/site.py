"""A MkDocs hook: the documents of the whole repository are the pages of the site.

The documents link to each other with paths that work in a checkout (`../config.example.toml`, `docs/wire.md`). So the
site has the same tree as the repository. MkDocs alone would take only the files below `docs/`. Files that are no
documents, such as examples and images, are part of the site if a document links to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files

ROOT: Final = Path(__file__).parent.parent.parent
DOCUMENTS: Final = ("*.md", "docs/**/*.md", "examples/*.md", "examples/*/*.md", "bench/*.md", "fuzz/*.md")
_LINK: Final = re.compile(r"\]\((?![a-z]+:)([^)#\s]+)")


def on_files(_: Files, config: Any, **__: Any) -> Files:
    """Replace the files that MkDocs found below `docs_dir`."""
    return Files([_page(config, path) for path in sorted(pages())])


def pages() -> set[Path]:
    """Return all documents, and the files that they link to."""
    documents = {path for pattern in DOCUMENTS for path in ROOT.glob(pattern)}
    return documents | {target for path in documents for target in _targets(path) if target.is_relative_to(ROOT)}


def _targets(document: Path) -> Iterator[Path]:
    for link in _LINK.findall(document.read_text(encoding="utf-8")):
        target = (document.parent / link).resolve()
        if target.is_file():
            yield target


def _page(config: Any, path: Path) -> File:
    return File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
