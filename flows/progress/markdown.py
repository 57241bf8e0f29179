"""Makes markdown for pages of the Prefect UI; names and errors are escaped, so that they are shown as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from slidesam.tasks.errors import printable


def text(raw_text: str) -> str:
    r"""Escape words, on one line: nothing in them is taken for markdown, HTML or the end of a cell.

    Example:
        >>> print(text("a|b <c> *d*"))
        a\|b \<c\> \*d\*
    """
    return re.sub(r"([\\`*_{}\[\]<>|~#&$!])", r"\\\1", " ".join(printable(raw_text).split()))


def code(raw_text: str) -> str:
    """Format words as code on one line, outside a table, whatever backticks they contain."""
    raw_text = " ".join(printable(raw_text).split())
    fence = "`" * (max(map(len, re.findall("`+", raw_text)), default=0) + 1)
    pad = " " if raw_text.startswith("`") or raw_text.endswith("`") else ""
    return f"{fence}{pad}{raw_text}{pad}{fence}"


def block(raw_text: str) -> str:
    """Format lines as a code block."""
    fence = "`" * max(3, max(map(len, re.findall("`+", raw_text)), default=0) + 1)
    return f"{fence}\n{printable(raw_text)}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Make a table of cells that are escaped already."""
    rules = ["---:" if side == "r" else "---" for side in align.ljust(len(head), "l")]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rules, *rows))
