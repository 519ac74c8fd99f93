"""Printed parts of a document: each is between `<!-- NAME: printed by ... -->` and `<!-- /NAME -->`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping


def fill(text: str, contents: Mapping[str, Callable[[], str]]) -> str:
    """Return a document with the text between its markers replaced; names without markers are skipped.

    Raises `ValueError` for a marker without its pair, and for a document without any.
    """
    found = False
    for name, content in contents.items():
        begin, end = re.search(rf"<!-- {name}: .*-->\n", text), text.find(f"<!-- /{name} -->")
        if begin is None and end < 0:
            continue
        if begin is None or end < begin.end():
            raise ValueError(f"the document needs a pair of {name} markers")
        text = f"{text[: begin.end()]}\n{content()}\n{text[end:]}"
        found = True
    if not found:
        raise ValueError(f"the document needs a pair of {', '.join(contents)} markers")
    return text
