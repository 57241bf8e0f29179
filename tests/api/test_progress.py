"""Who shows progress."""

from __future__ import annotations

import pytest
from rich.console import Console

from slidesam import progress
from slidesam.flows.progress.reporters import BarReporter
from slidesam.progress import NotebookReporter, StageReporter, open_reporter


@pytest.mark.parametrize(
    ("place", "reporter"),
    [({"force_terminal": True}, BarReporter), ({"force_jupyter": True}, NotebookReporter), ({}, StageReporter)],
)
def test_bars_on_a_terminal_lines_in_a_notebook_and_else_nothing(
    place: dict, reporter: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PlainConsole", lambda **options: Console(**options, **place))
    with open_reporter(None, "s") as chosen:
        assert type(chosen) is reporter


def test_a_callback_is_told_each_change() -> None:
    told: list[tuple[str, int, int]] = []
    with open_reporter(lambda *words: told.append(words), "s") as reporter:
        reporter.begin("painting", 4, 1)
        reporter.advance(2)
        reporter.advance()
        reporter.end()
    assert told == [("painting", 1, 4), ("painting", 3, 4), ("painting", 4, 4)]


def test_false_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with open_reporter(False, "s") as reporter:
        reporter.inform("words")
        reporter.begin("painting", 1, 0)
        reporter.advance()
        reporter.end()
    assert capsys.readouterr() == ("", "")
