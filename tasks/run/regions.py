"""The regions of interest of a run: read once, kept with its results, and the blocks that see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.pixels.regions_of_interest import RegionsOfInterest, is_rectangle, read_regions
from slidesam.tasks.run.array_files import ArrayFile, load_arrays, read_array_facts, write_arrays
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.facts import Slide


def resolve_region(slide: Slide, settings: Settings) -> tuple[Settings, str | None]:
    """Make the path of the regions' file absolute, if the settings name one; return the identity of the regions, too.

    Raises:
        SettingsError: The regions can't be read, or don't suit the slide.
    """
    region = settings.blocks.region
    if region is None:
        return settings, None
    if not is_rectangle(region):
        region = str(Path(region).expanduser().resolve())
    blocks = settings.blocks.model_copy(update={"region": region})
    return settings.model_copy(update={"blocks": blocks}), read_regions(region, slide.shape, slide.mpp).identity


def load_regions(run: Run) -> RegionsOfInterest | None:
    """Load the regions of a run, from its own copy if there is one; None where the whole slide is computed.

    Raises:
        SettingsError: There is no copy, and their file changed since the run was planned, or can't be read.
        DamagedError: The copy is damaged, and removed.
    """
    if run.region_identity is None or run.settings.blocks.region is None:
        return None
    path = run.segment_folder.regions(run.region_identity)
    facts = read_array_facts(path)
    if facts is not None:
        return RegionsOfInterest.from_arrays(tuple(facts["names"]), load_arrays(path))
    regions = read_regions(run.settings.blocks.region, run.slide.shape, run.slide.mpp)
    if regions.identity != run.region_identity:
        raise SettingsError(
            f"setting blocks.region: {run.settings.blocks.region} changed since the run began: run it again"
        )
    return regions


def keep_regions(run: Run) -> None:
    """Keep a copy of the regions, so that their file may change while the run lasts, unless there is one.

    Raises:
        SettingsError: They can't be read.
        OutputError: The copy can't be written.
    """
    if (regions := load_regions(run)) is None or run.region_identity is None:
        return
    path = run.segment_folder.regions(run.region_identity)
    if read_array_facts(path) is None:
        blocks = np.array(regions.find_blocks(run.grid), np.int64)
        write_arrays(path, regions.to_arrays() | {"blocks": blocks}, {"names": regions.names})


def list_region_blocks(run: Run) -> list[int] | None:
    """List the ids of the blocks that see a region, ascending; None where the whole slide is computed.

    Raises:
        SettingsError: See `load_regions`.
        DamagedError: The copy is damaged, and removed.
    """
    if run.region_identity is None:
        return None
    path = run.segment_folder.regions(run.region_identity)
    if read_array_facts(path) is not None:
        blocks: list[int] = ArrayFile(path).read("blocks").tolist()
        return blocks
    regions = load_regions(run)
    return None if regions is None else regions.find_blocks(run.grid)
