"""Write HTML that needs no other file: one style for light, dark and paper, and names that are always escaped."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from slidesam.tasks.errors import printable

STYLE = """
:root{color-scheme:light;--ink:#1d2329;--dim:#5c6670;--line:#dde2e6;--paper:#fff;--soft:#f1f3f5;--accent:#0b63a5;--mark:#eef6fc;
--bar:#8fb8da;--band:#dcebf7;--note:#fff5db;--bad:#b3261e}
@media screen and (prefers-color-scheme:dark){:root{color-scheme:dark;--ink:#e4e8eb;--dim:#9aa5ae;--line:#343c43;--paper:#15191c;
--soft:#21272c;--accent:#6cb6f5;--mark:#17293a;--bar:#4d83b0;--band:#20364a;--note:#352c14;--bad:#ff8a80}}
*{box-sizing:border-box;print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper);
margin:0 auto;max-width:1360px;padding:20px 24px 60px}
h1{font-size:22px;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:17px;margin:28px 0 8px}h3{font-size:15px;margin:14px 0 4px}
.dim{color:var(--dim)}p{margin:4px 0}ul{margin:6px 0;padding-left:20px}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
th{text-align:right;font-weight:600;color:var(--dim);border-bottom:2px solid var(--line);padding:4px 8px;vertical-align:bottom}
td{text-align:right;border-bottom:1px solid var(--line);padding:3px 8px;vertical-align:top}
th.l,td.l{text-align:left}td:not(.l){white-space:nowrap}
.facts td:last-child{overflow-wrap:anywhere}
a{color:var(--accent);text-decoration:none}
code{font:13px ui-monospace,monospace;background:var(--soft);padding:2px 5px;border-radius:4px;overflow-wrap:anywhere}
button,select{font:13px system-ui,sans-serif;color:inherit;border:1px solid var(--line);background:var(--paper);border-radius:4px;
padding:2px 9px;cursor:pointer}
.scroll{overflow-x:auto}
figure{margin:0}figcaption{font-size:14px;font-variant-numeric:tabular-nums;padding:3px 0 8px}
@media(max-width:600px){body{padding:14px 12px 40px}}
@media print{body{max-width:none;padding:0;font-size:12px}h2{break-after:avoid}figure,tr{break-inside:avoid}}
"""


def escape_text(raw_text: object) -> str:
    r"""Escape words that others wrote, such as names of slides and channels: nothing in them is taken for markup.

    Example:
        >>> escape_text("<b>\x1b[2J & more")
        '&lt;b&gt;?[2J &amp; more'
    """
    return escape(printable(str(raw_text)))


def write_html(title: str, body: Iterable[str], style: str = "", script: str = "") -> str:
    """Write a whole page.

    Args:
        title: Of the window, as words.
        body: Its parts, as HTML.
        style: Rules after those of `STYLE`.
        script: What a click does.
    """
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            # A browser asks for an icon otherwise, from wherever the page lies.
            f'<link rel="icon" href="data:,"><title>{escape_text(title)}</title><style>{STYLE}{style}</style></head><body>',
            *body,
            f"<script>{script}</script>" if script else "",
            "</body></html>\n",
        ]
    )


def tabulate(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Write a table of cells that are escaped already; its first columns are words."""
    top = f"<thead>{_row('th', head, left)}</thead>" if head else ""
    lines = "".join(_row("td", row, left) for row in rows)
    return f'<div class="scroll"><table>{top}<tbody>{lines}</tbody></table></div>'


def list_facts(pairs: Mapping[str, str]) -> str:
    """Write a table of names and values, the values escaped already."""
    rows = ((f"<b>{escape_text(name)}</b>", value) for name, value in pairs.items())
    return f'<div class="facts">{tabulate((), rows, left=2)}</div>'


def list_notes(sentences: Iterable[str]) -> str:
    """Write what a person should know, as words."""
    return "".join(f'<p class="note">{escape_text(sentence)}</p>' for sentence in sentences)


def encode_picture(picture: Image.Image, kind: str, **options: Any) -> str:
    """Write a picture as a data URI, so that the page holds it."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_number(value: float) -> str:
    """Write a number with three digits that count; whole ones from 1000 on with all.

    Example:
        >>> write_number(0.012345), write_number(12.345), write_number(123456.7), write_number(0), write_number(float("nan"))
        ('0.0123', '12.3', '123,457', '0', '–')
    """
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _row(tag: str, cells: Sequence[str], left: int) -> str:
    words = "".join(f'<{tag} class="l">{cell}</{tag}>' for cell in cells[:left])
    return f"<tr>{words}{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells[left:])}</tr>"
