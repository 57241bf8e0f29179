"""Instance segmentation of whole-slide images: the Python interface.

    import slidesam

    result = slidesam.segment("slide.svs", "results", settings={"segmenter.kind": "watershed"})
    result.labels[512:768, 512:768]

Nothing heavy is imported before it is needed: `import slidesam` loads neither torch nor Prefect nor Dask. docs/python.md is
the guide. `slidesam.flows` is the command line and what runs on clusters, `slidesam.tasks` is what computes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slidesam.comparisons import compare
    from slidesam.flows.cluster.find_profile import load_profile as Profile  # noqa: N812
    from slidesam.open_results import Result, open_result
    from slidesam.run_slides import inspect, segment, segment_block, stitch
    from slidesam.tasks.compare.comparison import Comparison
    from slidesam.tasks.errors import (
        BlockFailures,
        BlockLostError,
        BlockMemoryError,
        ClusterError,
        CohortFailures,
        DamagedError,
        DeviceError,
        DeviceMemoryError,
        OutputError,
        SegmenterError,
        ServerError,
        SettingsError,
        SlideAwayError,
        SlideError,
        SlideGoneError,
        SlidesamError,
        SlideUnchangedError,
    )
    from slidesam.tasks.grid import BlockGrid
    from slidesam.tasks.run.lock import LockedError
    from slidesam.tasks.settings.sections import Settings
    from slidesam.tasks.slides.facts import Slide

    __version__: str

__all__ = [
    "BlockFailures",
    "BlockGrid",
    "BlockLostError",
    "BlockMemoryError",
    "ClusterError",
    "CohortFailures",
    "Comparison",
    "DamagedError",
    "DeviceError",
    "DeviceMemoryError",
    "LockedError",
    "OutputError",
    "Profile",
    "Result",
    "SegmenterError",
    "ServerError",
    "Settings",
    "SettingsError",
    "Slide",
    "SlideAwayError",
    "SlideError",
    "SlideGoneError",
    "SlideUnchangedError",
    "SlidesamError",
    "__version__",
    "compare",
    "inspect",
    "open_result",
    "segment",
    "segment_block",
    "stitch",
]

# Where names are that aren't errors; a module is imported when the first of its names is used.
_HOMES = {
    "BlockGrid": "slidesam.tasks.grid:BlockGrid",
    "Comparison": "slidesam.tasks.compare.comparison:Comparison",
    "LockedError": "slidesam.tasks.run.lock:LockedError",
    "Profile": "slidesam.flows.cluster.find_profile:load_profile",
    "Result": "slidesam.open_results:Result",
    "Settings": "slidesam.tasks.settings.sections:Settings",
    "Slide": "slidesam.tasks.slides.facts:Slide",
    "compare": "slidesam.comparisons:compare",
    "inspect": "slidesam.run_slides:inspect",
    "open_result": "slidesam.open_results:open_result",
    "segment": "slidesam.run_slides:segment",
    "segment_block": "slidesam.run_slides:segment_block",
    "stitch": "slidesam.run_slides:stitch",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'slidesam' has no attribute {name!r}")
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("slidesam")
    else:
        module, _, attribute = _HOMES.get(name, f"slidesam.tasks.errors:{name}").partition(":")
        value = getattr(importlib.import_module(module), attribute)
    # Found without this function from now on.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
