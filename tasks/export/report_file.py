"""The report: a page that opens in any browser."""

from __future__ import annotations

from functools import partial
from typing import IO

from slidesam.tasks.export.columns import describe_columns
from slidesam.tasks.export.rows import read_rows
from slidesam.tasks.pages.object_values import ObjectValues
from slidesam.tasks.pages.slide_page import make_slide_page
from slidesam.tasks.run.run import Run


def write_report(run: Run, file: IO[bytes]) -> None:
    """Write the report on a run.

    Raises:
        DamagedError: What was described is damaged or gone.
        SlideError: The slide's pixels can't be read.
    """
    file.write(make_slide_page(run, ObjectValues(tuple(describe_columns(run)), partial(read_rows, run))).encode())
