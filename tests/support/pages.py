"""Check pages that must open without a network: whether they are well-formed, what they load, which words they show."""

from __future__ import annotations

import re
from collections.abc import Collection
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "input", "br", "path", "rect"}


class Page(HTMLParser):
    """A page, as a strict reader takes it.

    Attributes:
        errors: Tags that don't match.
        loads: What a browser would fetch.
        words: The text, piece by piece.
        tags: How often each tag is opened.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.errors: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.tags: dict[str, int] = {}
        self.ids: list[str] = []
        self._open: list[str] = []
        assert page.startswith("<!doctype html>")
        self.feed(page)
        self.close()
        self.errors += [f"<{tag}> is never closed" for tag in self._open]
        self.loads += re.findall(r"url\(([^)]{0,60})", page) + re.findall(r"@import[^;]*", page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        names = dict(attrs)
        if len(names) < len(attrs):
            self.errors.append(f"<{tag}> has an attribute twice")
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.errors += [f"<{tag}> has {name}" for name in names if name.startswith("on")]
        if names.get("id"):
            self.ids.append(str(names["id"]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.errors.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """All words, with single spaces."""
        return " ".join(" ".join(self.words).split())


def read_page(page: str, links: Collection[str] = ()) -> Page:
    """Read a page that is whole by itself, but for links to these; fail if it isn't."""
    found = Page(page)
    assert found.errors == []
    assert len(found.ids) == len(set(found.ids))
    outside = [load for load in found.loads if not load.startswith(("data:", "#")) and load not in links]
    assert outside == []
    assert {load[1:] for load in found.loads if load.startswith("#")} <= set(found.ids)
    assert not re.search(r"(?i)fetch\(|XMLHttpRequest|importScripts|<iframe|<object|<embed", page)
    return found
