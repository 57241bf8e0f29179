"""The log of a flow run, as its page shows it, and `prefect flow-run logs`, and the log of a worker on a terminal."""

from __future__ import annotations

import logging
from typing import Any

from prefect.logging import get_logger, get_run_logger

from slidesam.tasks.errors import printable


class _Printable(logging.Filter):
    """Takes control characters out of what is logged: names of files and errors may hold some."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        return True


_PRINTABLE = _Printable()


def run_log() -> logging.LoggerAdapter[Any] | logging.Logger:
    """Return the log of the flow or task run that is executed here.

    Raises:
        MissingContextError: None is.
    """
    log = get_run_logger()
    (log.logger if isinstance(log, logging.LoggerAdapter) else log).addFilter(_PRINTABLE)
    return log


def own_log() -> logging.Logger:
    """Return the log for what belongs to no run."""
    logger = get_logger("slidesam")
    logger.addFilter(_PRINTABLE)
    return logger
