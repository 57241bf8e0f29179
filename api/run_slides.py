"""Segmenting from Python: the whole pipeline in this process, or its tasks on a Dask client, without Prefect's engine.

    inspect         the facts of a slide
    segment         a slide to labels on disk
    segment_block   one block of a slide, to try settings
    stitch          block labels in memory to one label image

A run is the same as the command line's: same files, lock, `state.json` and fingerprints, so either resumes what the other began.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidesam.tasks.segmenters.allowed import find_code
from slidesam.tasks.settings.parse import make_settings, read_settings_file
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.decimation import mark_decimated
from slidesam.tasks.slides.facts import Slide, slide_name
from slidesam.tasks.slides.inspect import inspect_slide

if TYPE_CHECKING:
    import numpy as np
    from distributed import Client
    from numpy.typing import NDArray

    from slidesam.attempts import SegmentedBlock
    from slidesam.open_results import Result
    from slidesam.progress import Progress
    from slidesam.tasks.grid import BlockGrid

    PathLike = str | os.PathLike[str]
    # Nested or dotted names and their values, a file of them, or the settings themselves.
    SettingsLike = Settings | Mapping[str, Any] | PathLike | None


def inspect(slide: PathLike, settings: SettingsLike = None) -> Slide:
    """Read the facts of a slide: sizes, levels, pixel size, channels, warnings. A few pixels are read.

    Args:
        slide: Slide file, or OME-Zarr folder.
        settings: Which of its images and planes; see `segment`.

    Raises:
        SlideError: It can't be read, or isn't an image.
        SettingsError: A setting can't be used with this slide.
    """
    return mark_decimated(inspect_slide(slide, as_settings(settings).slide))


def segment(
    slide: PathLike,
    output: PathLike,
    settings: SettingsLike = None,
    client: Client | None = None,
    progress: Progress = None,
) -> Result:
    """Segment one slide; what exists from an earlier call with the same settings is used, not computed again.

    Args:
        slide: Slide file, or OME-Zarr folder.
        output: Folder for the results; made where it doesn't exist.
        settings: What to compute: a mapping with nested names ({"blocks": {"halo": 64}}) or dotted ones
            ({"blocks.halo": 64}), the path of a YAML file, or `Settings`. All have defaults. A mapping may name any
            code (`segmenter.target`), a file or `Settings` (such as those of a result) only what its package or the site allows
            (docs/own-segmenter.md).
        client: A `distributed.Client` whose workers compute and see the slide and the output folder under the same paths; None =
            this process computes. One worker computes one task at a time, whatever its number of threads.
        progress: Called with the stage's name, how many of its units are done, and how many it has; False = silent; None = bars
            on a terminal and in a notebook.

    Returns:
        The result.

    Raises:
        SettingsError: A setting is unknown or can't be used.
        SlideError: The slide can't be read.
        OutputError: The output can't be written, or another run is at work on the same result (`LockedError`).
        BlockFailures: Blocks failed after their retries; the others are kept, so that the next call tries only these.
        SlidesamError: What else slidesam says of the segmenter, the device or the cluster.
    """
    # What computes takes seconds to import: only whoever segments waits for it.
    from slidesam.attempts import Attempt
    from slidesam.open_results import open_result
    from slidesam.progress import open_reporter

    run_settings = as_settings(settings)
    with open_reporter(progress, slide_name(slide, run_settings.slide.name)) as reporter:
        run = Attempt(
            Path(slide), Path(output), run_settings, client, reporter, _list_allowed(settings, run_settings)
        ).finish()
    return open_result(run.paths.provenance)


def segment_block(
    slide: PathLike, output: PathLike, settings: SettingsLike = None, block_id: int | None = None
) -> SegmentedBlock:
    """Segment one block, with the parameters of the whole slide, to try a segmenter or its settings.

    The pixels are read where they are; what is computed stays in the output folder, and a later `segment` with the same
    settings uses it.

    Args:
        slide: See `segment`.
        output: See `segment`.
        settings: See `segment`.
        block_id: The block; None = one in the middle of those that hold tissue.

    Raises:
        SlidesamError: See `segment`; a failing block's own error is raised at once.
        IndexError: The slide has no such block.
    """
    from slidesam.attempts import Attempt
    from slidesam.progress import StageReporter

    in_place = {"convert": "never", "rechunk": "never"}
    run_settings = as_settings(settings)
    run_settings = run_settings.model_copy(update={"image": run_settings.image.model_copy(update=in_place)})
    allowed = _list_allowed(settings, run_settings)
    return Attempt(Path(slide), Path(output), run_settings, None, StageReporter(), allowed).segment_block(block_id)


def stitch(blocks: Sequence[NDArray[Any]], grid: BlockGrid, settings: SettingsLike = None) -> NDArray[np.uint32]:
    """Join the labels of overlapping blocks, made by whatever means, into one label image.

    Args:
        blocks: One (y, x) array of any integer type per block of the grid, in its order: the labels of the block's outer
            region, 0 = background. Each block has its own ids.
        grid: How the image is cut into blocks.
        settings: Those of the section `stitch` are used; see `segment`.

    Returns:
        (y, x) labels of the grid's shape, ids 1..N, 0 = background.

    Raises:
        SettingsError: There isn't one array per block, or a setting can't be used.
        SegmenterError: An array isn't a label image of its block's outer region.

    Example:
        >>> import numpy as np
        >>> from slidesam.tasks.grid import BlockGrid
        >>> grid = BlockGrid((4, 8), (4, 4), 2)
        >>> image = np.zeros((4, 8), np.uint8)
        >>> image[1:3, 3:6] = 9
        >>> stitch([image[block.outer.slices] for block in grid], grid)[1]
        array([0, 0, 0, 1, 1, 1, 0, 0], dtype=uint32)
    """
    from slidesam.tasks.stitch.arrays import stitch_arrays

    return stitch_arrays(blocks, grid, as_settings(settings).stitch)


def _list_allowed(settings: SettingsLike, run_settings: Settings) -> tuple[str, ...]:
    """Return the code that the caller allows by naming it in a mapping.

    A file allows none, nor do `Settings`: they may be those of a result, and so somebody else's file.
    """
    return tuple(find_code(run_settings.segmenter).values()) if isinstance(settings, Mapping) else ()


def as_settings(settings: SettingsLike) -> Settings:
    """Make settings from any form that `segment` takes.

    Raises:
        SettingsError: A name is unknown, a value can't be used, or the file can't be read.

    Example:
        >>> as_settings({"segmenter": {"kind": "watershed"}, "blocks.halo": 64}).blocks.halo
        64
    """
    if isinstance(settings, Settings):
        return settings
    values: Any = {} if settings is None else settings
    if isinstance(settings, str | os.PathLike):
        values = read_settings_file(Path(settings))
    nested = {name: value for name, value in values.items() if "." not in name}
    dotted = {name: value for name, value in values.items() if "." in name}
    return make_settings(nested, dotted)
