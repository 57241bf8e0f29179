"""What others may have written (names of files, state files, errors) reaches a terminal and a log without control characters."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from slidesam.flows import console, run_log
from slidesam.flows.cli.app import app
from slidesam.flows.console import PlainConsole
from slidesam.flows.progress.reporters import BarReporter
from slidesam.tasks.errors import printable
from slidesam.tasks.run.status import write_state

# Clears the screen, sets its title, rings, goes back, turns the direction of writing, and is no character.
EVIL = "\x1b[2J\x1b]0;title\x07\b\x9b31m\u202egpj\udcff"


def is_plain(text: str) -> bool:
    return not any(sign in text for sign in "\x1b\x07\b\x9b\u202e\udcff\r")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What both consoles print, as to a file that no terminal reads."""
    stream = io.StringIO()
    for name in ("out", "err"):
        monkeypatch.setattr(getattr(console, name), "_file", stream)
    return stream


def test_plain_text_stays_as_it_is() -> None:
    text = "é µm × 日本\u00a0\u202f5 %\n\tä"
    assert printable(text) == text
    assert is_plain(printable(EVIL))
    assert printable("\x1b[2J") == "?[2J"


def test_status_of_a_folder_that_others_wrote(tmp_path: Path, shown: io.StringIO) -> None:
    write_state(
        tmp_path, f"a{EVIL[:5]}b", "cells", f"running{EVIL[:20]}", error=f"E{EVIL[:20]}", warnings=(f"W{EVIL[:20]}",),
        dashboards={"cpu": f"http://h:1/{EVIL[:4]}"},
    )  # fmt: skip
    with pytest.raises(SystemExit, match="0"):
        app(["status", str(tmp_path)])
    text = shown.getvalue()
    assert is_plain(text)
    assert all(word in text for word in ("a?[2J?b", "running?[2J", "E?[2J", "W?[2J"))


def test_errors_messages_tables_and_bars(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    console.say("note:", f"S{EVIL}")
    for debug in ("", "1"):
        monkeypatch.setenv("SLIDESAM_DEBUG", debug)
        try:
            raise ValueError(f"V{EVIL}")
        except ValueError as error:
            console.say_failed(error)
    table = Table(f"head{EVIL}")
    table.add_row(Text(f"T{EVIL}"))
    console.out.print(table)
    reporter = BarReporter(console.err, f"B{EVIL}")
    reporter.inform(f"I{EVIL}")
    reporter.begin("stage", 1, 0)
    reporter.end()
    reporter.bars.stop()
    text = shown.getvalue()
    assert is_plain(text)
    assert all(f"{letter}?[2J?]0;title" in text for letter in "SVTBI")


def test_colours_and_bars_of_our_own_stay() -> None:
    stream = io.StringIO()
    PlainConsole(file=stream, force_terminal=True, color_system="standard").print("[red]error:[/]", Text(EVIL))
    text = stream.getvalue()
    assert text.startswith("\x1b[31merror:\x1b[0m ?[2J")
    assert is_plain(text.replace("\x1b[31m", "").replace("\x1b[0m", ""))


def test_a_runs_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("slidesam-test-of-logs")
    monkeypatch.setattr(run_log, "get_run_logger", lambda: logging.LoggerAdapter(logger))
    run_log.run_log().warning("%s: %d", f"slide{EVIL}", 5)
    run_log.run_log().warning("100 % of it")
    assert is_plain(caplog.text)
    assert caplog.messages == [printable(f"slide{EVIL}: 5"), "100 % of it"]
