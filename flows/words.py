"""Errors in words."""

from __future__ import annotations

from slidesam.tasks.errors import SlidesamError


def in_one_line(error: BaseException) -> str:
    """An error on one line, with its type where its words alone may say little.

    Example:
        >>> in_one_line(ValueError("no such thing"))
        'ValueError: no such thing'
    """
    words = " ".join(str(error).split()) or "no message"
    return words if isinstance(error, SlidesamError) else f"{type(error).__name__}: {words}"
