"""Records as a run writes them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from slidesam.tasks.run.records import ImageFacts, Provenance, SegmenterFacts
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.inspect import inspect_slide
from tests.support.slides import write_numbered_slide


@functools.cache
def small_slide() -> Slide:
    with tempfile.TemporaryDirectory() as folder:
        return inspect_slide(write_numbered_slide(Path(folder) / "s.tif"))


def finished_record(**changes: object) -> Provenance:
    """The provenance of a finished run, but for these fields."""
    fields = {
        "status": "finished",
        "finished": "2030-01-01T00:00:00+00:00",
        "slide": small_slide(),
        "label": "cells",
        "objects": 3,
        "blocks": 9,
        "image": ImageFacts(mode="in place"),
        "settings": {},
        "segmenter": SegmenterFacts(identity="watershed"),
    }
    return Provenance.model_validate(fields | changes)
