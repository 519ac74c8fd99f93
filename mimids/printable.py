"""Makes text from others safe to print on a terminal, in the log and in the console."""

from __future__ import annotations

import unicodedata
from typing import Final

# Controls, bidi marks and other invisible characters, surrogates, line ends, and characters that are not assigned.
_ESCAPED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: str, *, at_most: int | None = None) -> str:
    r"""Return text that fits on one line and cannot change the text around it.

    A control character is written as `\x1b`.

    A text of more than `at_most` characters is cut, and ends in an ellipsis.
    """
    if at_most is not None and len(text) > at_most:
        text = text[: at_most - 1] + "…"
    if text.isprintable():
        return text
    return "".join(
        each.encode("unicode_escape").decode() if unicodedata.category(each) in _ESCAPED else each for each in text
    )
