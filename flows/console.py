"""The output of the `slidesam` command: lines on standard output, and errors on one line of standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from slidesam.tasks.errors import SlidesamError, in_one_line, printable


class PlainConsole(Console):
    """Shows text that others may have written as it is: no control character of it reaches the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, and replace control characters that aren't rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


out, err = PlainConsole(highlight=False, soft_wrap=True), PlainConsole(stderr=True, highlight=False, soft_wrap=True)


def say(sign: str, message: str) -> None:
    """Print a line as it is: names of slides may contain what rich would take for markup."""
    out.print(sign, Text(message))


def say_failed(error: BaseException) -> None:
    """Print an error on one line; with --debug its traceback, too."""
    if os.environ.get("SLIDESAM_DEBUG"):
        err.print_exception() if sys.exc_info()[0] else err.print(str(error))
    hint = "" if isinstance(error, SlidesamError) else " (slidesam --debug shows where)"
    err.print("[red]error:[/]", end=" ")
    err.print(f"{in_one_line(error)}{hint}", markup=False)
