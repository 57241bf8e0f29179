"""What can go wrong, in words for the person who meets it.

    SlidesamError
    ├── SettingsError    (ValueError)    a setting is unknown, or its value is of no use; nothing was run
    ├── SlideError       (OSError)       a slide can't be read, or isn't an image
    ├── OutputError      (OSError)       the output folder can't be used, or holds something else
    ├── SegmenterError   (RuntimeError)  the segmenter can't be made, or returned what is no label image
    ├── ServerError      (ConnectionError)  Prefect's API doesn't answer
    └── BlockFailures    (RuntimeError)  some blocks failed after all retries; carries `.block_ids`

A message names the slide, block or setting, the value, and what to do next. The command line prints it on one line.
"""

from __future__ import annotations

from collections.abc import Mapping


class SlidesamError(Exception):
    """Base of every error that slidesam raises on purpose."""


class SettingsError(SlidesamError, ValueError):
    """A setting is unknown or its value can't be used: correct the settings and run again."""


class SlideError(SlidesamError, OSError):
    """A slide can't be read: repair, replace or leave out the file."""


class OutputError(SlidesamError, OSError):
    """The output folder can't be used as it is."""


class SegmenterError(SlidesamError, RuntimeError):
    """The segmenter can't be made, or returned something that is no label image of its input."""


class ServerError(SlidesamError, ConnectionError):
    """There is no Prefect API to record runs with: start one, or mend its address."""


class BlockFailures(SlidesamError, RuntimeError):  # noqa: N818
    """Blocks that failed after all their retries.

    Args:
        slide: The slide's name.
        failures: Block id → what happened, on one line.
        n_blocks: Number of blocks of the slide.

    Attributes:
        block_ids: Ids of the failed blocks, ascending: all that a rerun needs.
    """

    def __init__(self, slide: str, failures: Mapping[int, str], n_blocks: int) -> None:
        self.slide = slide
        self.failures = dict(sorted(failures.items()))
        self.block_ids = tuple(self.failures)
        self.n_blocks = n_blocks
        super().__init__(str(self))

    def __reduce__(self) -> tuple[type[BlockFailures], tuple[str, dict[int, str], int]]:
        return type(self), (self.slide, self.failures, self.n_blocks)

    def __str__(self) -> str:
        shown = "; ".join(f"block {block_id}: {what}" for block_id, what in list(self.failures.items())[:3])
        more = f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else ""
        return (
            f"{self.slide}: {len(self.failures)} of {self.n_blocks} blocks failed ({shown}{more}). "
            "The others are kept: run the same command again to try only these"
        )


def in_one_line(error: BaseException | str, limit: int = 1000) -> str:
    """An error on one line, with its type where its words alone may say little.

    Args:
        error: The error, or words that come from outside.
        limit: How many characters to keep.

    Example:
        >>> in_one_line(ValueError("no such thing"))
        'ValueError: no such thing'
        >>> in_one_line("two" + chr(10) + "lines", 6)
        'two l…'
    """
    words = (
        str(error) if isinstance(error, SlidesamError | str) else f"{type(error).__name__}: {error}".removesuffix(": ")
    )
    words = " ".join(words.replace("\\n", " ").split())
    words = "".join(character if character.isprintable() else "?" for character in words)
    return words if len(words) <= limit else words[: limit - 1] + "…"
